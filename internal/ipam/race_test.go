//go:build race

package ipam_test

// raced: under the race detector, which is ten times slower and of no use to one goroutine.
const raced = true
