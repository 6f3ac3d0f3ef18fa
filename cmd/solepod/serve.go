package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/webhook"
)

// shutdownTimeout is how long running admissions may take to end after
// SIGTERM. It exceeds the longest timeout a webhook can have (30 s).
const shutdownTimeout = 35 * time.Second

type serveOptions struct {
	kubeconfig             string
	config                 string
	namespace              string
	webhookBindAddress     string
	certDir                string
	metricsBindAddress     string
	healthProbeBindAddress string
	leaderElect            bool
	logLevel               string
	logFormat              string
}

func newServeCommand() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the admission webhook",
		Long: `Run the admission webhook.

It serves TLS 1.3 with tls.crt and tls.key of --cert-dir, and takes up new ones
when the files change. /readyz of --health-probe-bind-address answers 200 once
the caches are filled and the webhook is being served. On SIGTERM, running
admissions are finished first.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file; default: KUBECONFIG, the pod's ServiceAccount, or ~/.kube/config")
	flags.StringVar(&o.config, "config", "", "configuration file (solepod.io/v1alpha1 Configuration); default: built-in defaults")
	flags.StringVar(&o.namespace, "namespace", "solepod-system", "namespace that solepod itself lives in")
	flags.StringVar(&o.webhookBindAddress, "webhook-bind-address", ":9443", "host:port to serve the webhook on")
	flags.StringVar(&o.certDir, "cert-dir", "/var/run/solepod/tls", "directory with tls.crt and tls.key")
	flags.StringVar(&o.metricsBindAddress, "metrics-bind-address", ":8080", "host:port to serve /metrics on, 0 for none")
	flags.StringVar(&o.healthProbeBindAddress, "health-probe-bind-address", ":8081", "host:port to serve /healthz and /readyz on, 0 for none")
	flags.BoolVar(&o.leaderElect, "leader-elect", false, "run background work on one replica only; every replica answers admissions")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error; debug logs admissions too")
	flags.StringVar(&o.logFormat, "log-format", "json", "json or text")
	return cmd
}

func (o *serveOptions) run(ctx context.Context, stderr io.Writer) error {
	log, err := o.logger(stderr)
	if err != nil {
		return err
	}
	ctrl.SetLogger(log)
	klog.SetLogger(log)

	cfg, err := config.Load(o.config)
	if err != nil {
		return err
	}
	host, port, err := splitHostPort(o.webhookBindAddress)
	if err != nil {
		return fmt.Errorf("--webhook-bind-address: %w", err)
	}
	restConfig, err := o.restConfig()
	if err != nil {
		return err
	}
	log.Info("Starting solepod", "version", version, "configuration", cfg.String())

	timeout := shutdownTimeout
	mgr, err := ctrl.NewManager(restConfig, ctrl.Options{
		Scheme: scheme.Scheme,
		Logger: log,
		Cache:  webhook.CacheOptions(o.namespace),
		WebhookServer: ctrlwebhook.NewServer(ctrlwebhook.Options{
			Host: host, Port: port, CertDir: o.certDir,
			TLSOpts: []func(*tls.Config){func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 }},
		}),
		Metrics:                 metricsserver.Options{BindAddress: o.metricsBindAddress},
		HealthProbeBindAddress:  o.healthProbeBindAddress,
		LeaderElection:          o.leaderElect,
		LeaderElectionID:        "solepod",
		LeaderElectionNamespace: o.namespace,
		// The process ends right after the manager, so that the next leader
		// need not wait for the lease to expire.
		LeaderElectionReleaseOnCancel: true,
		GracefulShutdownTimeout:       &timeout,
	})
	if err != nil {
		return fmt.Errorf("connecting to the API server: %w", err)
	}
	synced, err := webhook.Setup(ctx, mgr, o.namespace, cfg)
	if err != nil {
		return err
	}
	stopped := make(chan error, 1)
	go func() { stopped <- mgr.Start(ctx) }()
	select {
	case err := <-stopped:
		return err
	case <-ctx.Done():
		if !synced() {
			return nil // a manager whose caches are filling never stops, and has admitted nothing
		}
		return <-stopped
	}
}

// restConfig has no client-side rate limit: an admission must not queue
// behind others in its own process. The API server has fair queues of its own.
func (o *serveOptions) restConfig() (*rest.Config, error) {
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

func (o *serveOptions) logger(w io.Writer) (logr.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return logr.Discard(), fmt.Errorf("--log-level %q: want debug, info, warn or error", o.logLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "json":
		return logr.FromSlogHandler(slog.NewJSONHandler(w, options)), nil
	case "text":
		return logr.FromSlogHandler(slog.NewTextHandler(w, options)), nil
	}
	return logr.Discard(), fmt.Errorf("--log-format %q: want json or text", o.logFormat)
}

func splitHostPort(address string) (host string, port int, err error) {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("%q: want host:port: %w", address, err)
	}
	port, err = strconv.Atoi(portText)
	if err != nil || port < 1 || port > 65535 {
		return "", 0, errors.Join(fmt.Errorf("%q: want a port from 1 to 65535", address), err)
	}
	return host, port, nil
}
