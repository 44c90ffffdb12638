//go:build race

package green_test

const raceDetector = true
