"""Medical segmenters in 2-D and 3-D: any network from pictures to logits, as the preference engine sees it."""
