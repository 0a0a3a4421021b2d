"""The population search: its log, its runners (Ray Tune, or this process alone), and the runs built of them."""
