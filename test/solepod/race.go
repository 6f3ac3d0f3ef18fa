//go:build race

package solepod

// race is true if the test has the race detector.
const race = true
