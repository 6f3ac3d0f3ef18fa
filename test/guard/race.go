//go:build race

package guard

func raceFlags() []string { return []string{"-race"} }
