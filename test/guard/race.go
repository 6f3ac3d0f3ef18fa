//go:build race

package guard

// race is true if the test has the race detector.
const race = true
