package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
)

// clusterOptions say which cluster, and where in it solepod lives.
type clusterOptions struct {
	kubeconfig string
	namespace  string
}

// addFlags adds the flags; own is what the one for solepod's own namespace is called.
func (o *clusterOptions) addFlags(flags *pflag.FlagSet, own string) {
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file; default: KUBECONFIG, the pod's ServiceAccount, or ~/.kube/config")
	flags.StringVar(&o.namespace, own, "solepod-system", "namespace that solepod itself lives in")
}

// restConfig has no client-side rate limit: an admission must not queue
// behind others in its own process. The API server has fair queues of its own.
func (o *clusterOptions) restConfig() (*rest.Config, error) {
	load := ctrl.GetConfig
	if o.kubeconfig != "" {
		load = func() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", o.kubeconfig) }
	}
	restConfig, err := load()
	if err != nil {
		return nil, fmt.Errorf("finding the API server (--kubeconfig): %w", err)
	}
	restConfig.QPS = -1
	restConfig.UserAgent = "solepod/" + version
	return restConfig, nil
}

// printer chooses how to print by the value of --output.
func printer[P any](output string, printers map[string]P) (P, error) {
	print, ok := printers[output]
	if !ok {
		return print, fmt.Errorf("--output %q: want %s", output, strings.Join(slices.Sorted(maps.Keys(printers)), " or "))
	}
	return print, nil
}
