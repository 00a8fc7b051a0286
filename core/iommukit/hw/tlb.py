"""A TLB: translations that hardware keeps until it is told to forget them."""
