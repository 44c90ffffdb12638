//go:build race

package loss_test

// buildFlags make the agent's binary of what this test was made of.
var buildFlags = []string{"-race"}
