//go:build !race

package ipam_test

const raced = false
