package main

import "weft/test/bench/lab"

// rig is the laboratory of one run, with what is measured in it.
type rig struct{ *lab.Lab }
