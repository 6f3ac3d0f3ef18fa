package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/solepod/solepod/pkg/config"
)

// output is the flag --output of a command, and prints what the command has
// found: in formats of its own, or in those that kubectl has for objects.
type output[T any] struct {
	// kind is that of the object in the formats of kubectl.
	kind string
	// formats are the command's own, by the value of --output.
	formats map[string]func(io.Writer, T) error
	format  string
}

func (o *output[T]) addFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.format, "output", "o", "table", "output format: "+o.values())
}

func (o *output[T]) values() string {
	own := slices.Collect(maps.Keys(o.formats))
	return strings.Join(slices.Sorted(slices.Values(append(own, "json", "yaml", "jsonpath=...", "go-template=..."))), ", ")
}

// printer returns a function that prints in the format of the flag, or an error
// that lists the formats.
func (o *output[T]) printer() (func(io.Writer, T) error, error) {
	if print, ok := o.formats[o.format]; ok {
		return print, nil
	}
	printer, err := genericclioptions.NewJSONYamlPrintFlags().ToPrinter(o.format)
	if genericclioptions.IsNoCompatiblePrinterError(err) {
		printer, err = genericclioptions.NewKubeTemplatePrintFlags().ToPrinter(o.format)
	}
	if genericclioptions.IsNoCompatiblePrinterError(err) {
		return nil, fmt.Errorf("--output %q: want one of %s", o.format, o.values())
	}
	if err != nil {
		return nil, fmt.Errorf("--output %q: %w", o.format, err)
	}
	return func(w io.Writer, found T) error {
		text, err := json.Marshal(found)
		if err != nil {
			return err
		}
		object := &unstructured.Unstructured{}
		if err := json.Unmarshal(text, &object.Object); err != nil {
			return err
		}
		object.SetAPIVersion(config.APIVersion)
		object.SetKind(o.kind)
		return printer.PrintObj(object, w)
	}, nil
}

// counter returns a function that counts on one line of a terminal, and one
// that ends the line. If w is not a terminal, both do nothing.
func counter(w io.Writer, what string, of int) (step, end func()) {
	file, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return func() {}, func() {}
	}
	n := 0
	return func() { n++; fmt.Fprintf(w, "\r%s: %d of %d", what, n, of) }, func() { fmt.Fprintln(w) }
}
