package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/solepod/solepod/certs"
	"github.com/solepod/solepod/pkg/audit"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/page"
	"github.com/solepod/solepod/pkg/webhook"
)

// shutdownTimeout is how long running admissions may take to end after
// SIGTERM. It exceeds the longest timeout a webhook can have (30 s).
const shutdownTimeout = 35 * time.Second

// name is that of all that belongs to an installation: the Service, the webhook
// configurations, the leader's Lease.
const name = "solepod"

const (
	// auditPageEvery bounds what the page costs the API server.
	auditPageEvery = 10 * time.Second
	// reclaimRate is how many pods are reclaimed in a second.
	reclaimRate = 5
)

type serveOptions struct {
	clusterOptions
	config                 string
	webhookBindAddress     string
	certDir                string
	certSecret             string
	certLifetime           time.Duration
	clients                certs.Clients
	metricsBindAddress     string
	healthProbeBindAddress string
	leaderElect            bool
	shutdownDelay          time.Duration
	reclaimOlderThan       time.Duration
	auditPage              bool
	maxStaleness           time.Duration
	logLevel               string
	logFormat              string
}

func newServeCommand() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the admission webhook",
		Long: `Run the admission webhook.

It serves TLS 1.3 with certificates of its own making (--cert-secret), which the
leader renews, or with tls.crt and tls.key of a folder (--cert-dir), and takes up
new ones when the files change. /readyz of --health-probe-bind-address answers
200 once the caches are filled and the webhook is being served, until the API
server has told nothing for --max-staleness. After SIGTERM it goes on to answer
for --shutdown-delay, and finishes running admissions.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	o.addFlags(flags, "namespace")
	flags.StringVar(&o.config, "config", "", "configuration file (solepod.io/v1alpha1 Configuration); default: built-in defaults")
	flags.StringVar(&o.webhookBindAddress, "webhook-bind-address", ":9443", "host:port to serve the webhook on")
	flags.StringVar(&o.certDir, "cert-dir", "", "directory with tls.crt and tls.key, such as cert-manager fills")
	flags.StringVar(&o.certSecret, "cert-secret", "", "Secret in --namespace that solepod itself keeps its certificates in; it also keeps the caBundle of the webhook configurations solepod")
	flags.DurationVar(&o.certLifetime, "cert-lifetime", 90*24*time.Hour, "lifetime of the certificates in --cert-secret; the next one is made when a third of it is left, and in less than 2m one may expire while a killed leader has no successor")
	flags.StringVar(&o.clients.CAFile, "client-ca-file", "", "CA certificates of the API servers' client certificates; default: anybody may call")
	flags.StringSliceVar(&o.clients.Names, "client-allowed-names", nil, "common names of the client certificates that --client-ca-file accepts; default: all")
	cmd.MarkFlagsOneRequired("cert-dir", "cert-secret")
	cmd.MarkFlagsMutuallyExclusive("cert-dir", "cert-secret")
	flags.StringVar(&o.metricsBindAddress, "metrics-bind-address", ":8080", "host:port to serve /metrics on, 0 for none")
	flags.StringVar(&o.healthProbeBindAddress, "health-probe-bind-address", ":8081", "host:port to serve /healthz and /readyz on, 0 for none")
	flags.BoolVar(&o.leaderElect, "leader-elect", false, "run background work on one replica only; every replica answers admissions")
	flags.DurationVar(&o.shutdownDelay, "shutdown-delay", 0, "how long to go on answering after SIGTERM, until API servers have heard that this replica is leaving its Service")
	flags.DurationVar(&o.reclaimOlderThan, "reclaim-older-than", 0, "remove task pods that Airflow has left behind, as solepod reclaim does, when they ended this long ago; default: never")
	flags.BoolVar(&o.auditPage, "audit-page", false, "serve /audit, the page of solepod audit, on --metrics-bind-address, to anybody who can reach it")
	flags.DurationVar(&o.maxStaleness, "max-staleness", time.Minute, "how long the API server may tell nothing of pods, namespaces or ServiceAccounts, until this replica is no longer ready, and treats reviews as onError says")
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
	if o.maxStaleness < webhook.MinStaleness {
		return fmt.Errorf("--max-staleness %s: want at least %s", o.maxStaleness, webhook.MinStaleness)
	}
	restConfig, err := o.restConfig()
	if err != nil {
		return err
	}
	certificates, err := o.certificates()
	if err != nil {
		return err
	}
	// Most of the heap is what is known of pods, and stays: it may grow by half
	// before the next collection, and need not double.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	log.Info("Starting solepod", "version", version, "configuration", cfg.String())

	fresh := webhook.NewFreshness(o.maxStaleness)
	cacheOptions := webhook.CacheOptions(o.namespace, cfg.EnvironmentLabel, fresh)
	maps.Copy(cacheOptions.ByObject, certificates.Cache())
	timeout := shutdownTimeout
	mgr, err := ctrl.NewManager(restConfig, ctrl.Options{
		Scheme: scheme.Scheme,
		Logger: log,
		Cache:  cacheOptions,
		WebhookServer: o.clients.Server(ctrlwebhook.NewServer(ctrlwebhook.Options{
			Host: host, Port: port,
			TLSOpts: []func(*tls.Config){certs.TLS(certificates, o.clients)},
		})),
		Metrics:                 metricsserver.Options{BindAddress: o.metricsBindAddress},
		HealthProbeBindAddress:  o.healthProbeBindAddress,
		LeaderElection:          o.leaderElect,
		LeaderElectionID:        name,
		LeaderElectionNamespace: o.namespace,
		// The process ends right after the manager, so that the next leader
		// need not wait for the lease to expire.
		LeaderElectionReleaseOnCancel: true,
		GracefulShutdownTimeout:       &timeout,
	})
	if err != nil {
		return fmt.Errorf("connecting to the API server: %w", err)
	}
	if err := certificates.SetupWithManager(ctx, mgr); err != nil {
		return fmt.Errorf("setting up the certificates: %w", err)
	}
	if err := metrics.Registry.Register(certs.Expiry(certificates)); err != nil {
		return err
	}
	synced, err := webhook.Setup(ctx, mgr, o.namespace, cfg, fresh)
	if err != nil {
		return err
	}
	if err := o.addAudit(mgr, cfg); err != nil {
		return err
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	context.AfterFunc(ctx, func() { time.AfterFunc(o.shutdownDelay, stop) })
	stopped := make(chan error, 1)
	go func() { stopped <- mgr.Start(serving) }()
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

// addAudit adds what looks at the cluster beside the webhook, if it is wanted.
func (o *serveOptions) addAudit(mgr ctrl.Manager, cfg config.Configuration) error {
	source := audit.Source{Client: mgr.GetAPIReader(), Namespace: o.namespace, Configuration: cfg}
	if o.auditPage {
		replica, err := os.Hostname()
		if err != nil {
			return err
		}
		live := &page.Live{
			Source: source, Options: audit.Options{Settings: cfg.Policy(), OlderThan: cmp.Or(o.reclaimOlderThan, audit.LeftoverAge)},
			Replica: replica, Decisions: metrics.Registry, Every: auditPageEvery,
		}
		if err := errors.Join(mgr.AddMetricsServerExtraHandler("/audit", live), mgr.Add(live)); err != nil {
			return fmt.Errorf("adding the audit page: %w", err)
		}
	}
	if o.reclaimOlderThan < 0 {
		return fmt.Errorf("--reclaim-older-than %s: want 0 or more", o.reclaimOlderThan)
	}
	if o.reclaimOlderThan > 0 {
		controller := audit.NewController(source, audit.Options{Settings: cfg.Policy(), OlderThan: o.reclaimOlderThan}, audit.Reclaimer{
			Client: mgr.GetClient(), Limiter: flowcontrol.NewTokenBucketRateLimiter(reclaimRate, 1),
		})
		if err := errors.Join(mgr.Add(controller), metrics.Registry.Register(controller)); err != nil {
			return fmt.Errorf("adding the reclaim controller: %w", err)
		}
	}
	return nil
}

// certificates are those to serve.
func (o *serveOptions) certificates() (certs.Source, error) {
	if len(o.clients.Names) > 0 && o.clients.CAFile == "" {
		return nil, errors.New("--client-allowed-names: want --client-ca-file as well, without which nobody has a name")
	}
	if o.clients.CAFile != "" {
		if _, err := cert.NewPool(o.clients.CAFile); err != nil {
			return nil, fmt.Errorf("--client-ca-file: %w", err)
		}
	}
	if o.certDir != "" {
		source, err := certs.Files(o.certDir)
		if err != nil {
			return nil, fmt.Errorf("--cert-dir: %w", err)
		}
		return source, nil
	}
	rotation, err := certs.NewRotation(certs.Options{
		Secret:  types.NamespacedName{Namespace: o.namespace, Name: o.certSecret},
		Service: name, Configurations: name, Lifetime: o.certLifetime,
	})
	if err != nil {
		return nil, fmt.Errorf("--cert-lifetime: %w", err)
	}
	return rotation, nil
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
