//go:build !race

package guard

func raceFlags() []string { return nil }
