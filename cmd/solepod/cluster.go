package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/rest"

	"github.com/solepod/solepod/pkg/installation"
)

// clusterOptions select a cluster, as kubectl does, and the namespace of the
// installation in it.
type clusterOptions struct {
	*genericclioptions.ConfigFlags
	systemNamespace string
}

// addFlags adds the flags of kubectl but --namespace, which commands use in
// different ways.
func (o *clusterOptions) addClusterFlags(cmd *cobra.Command) {
	o.ConfigFlags = genericclioptions.NewConfigFlags(true)
	o.Namespace = nil
	o.AddFlags(cmd.Flags())
	addSystemNamespace(cmd, &o.systemNamespace)
}

func addSystemNamespace(cmd *cobra.Command, namespace *string) {
	cmd.Flags().StringVar(namespace, "system-namespace", installation.DefaultNamespace, "namespace that solepod is installed in")
}

func (o *clusterOptions) restConfig() (*rest.Config, error) {
	return identified(o.ToRESTConfig())
}

// identified adds what every client of solepod has. There is no client-side
// rate limit: an admission must not queue behind others in its own process, and
// the API server has fair queues of its own.
func identified(c *rest.Config, err error) (*rest.Config, error) {
	if err != nil {
		return nil, fmt.Errorf("finding the API server (--kubeconfig): %w", err)
	}
	c.QPS = -1
	c.UserAgent = "solepod/" + version
	return c, nil
}
