package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// version is set by the linker: -X main.version=v0.1.0.
var version = "devel"

// build describes how a binary was built.
type build struct {
	Version string `json:"version"`
	// Commit and Date, that of the commit, are empty if the source was no checkout.
	Commit string `json:"commit,omitempty"`
	Date   string `json:"date,omitempty"`
	// Modified is true if the checkout differed from the commit.
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// newBuild reads the commit from the build information of the Go command. It cannot
// be forgotten or wrong, as linker flags can.
func newBuild(version string, info *debug.BuildInfo) build {
	b := build{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info == nil {
		return b
	}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			b.Commit = setting.Value
		case "vcs.time":
			b.Date = setting.Value
		case "vcs.modified":
			b.Modified = setting.Value == "true"
		}
	}
	return b
}

func (b build) String() string {
	words := []string{"solepod", b.Version}
	if b.Commit != "" {
		commit := b.Commit
		if b.Modified {
			commit += "-dirty" // as git describe has it in versions
		}
		words = append(words, "commit", commit, "of", b.Date)
	}
	return strings.Join(append(words, b.Go, b.Platform), " ")
}

func newVersionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print version, commit, date of the commit, Go version and platform",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, _ := debug.ReadBuildInfo() // nil if there is none
			return newBuild(version, info).print(cmd.OutOrStdout(), output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func (b build) print(w io.Writer, output string) error {
	switch output {
	case "text":
		_, err := fmt.Fprintln(w, b)
		return err
	case "json":
		return json.NewEncoder(w).Encode(b)
	}
	return fmt.Errorf("--output %q: want text or json", output)
}
