"""The local page of `dpce serve`: search in galleries with sentences and photos, and look at what is found."""
