package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/solepod/solepod/certs"
	"github.com/solepod/solepod/pkg/audit"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/installation"
	"github.com/solepod/solepod/pkg/leader"
	"github.com/solepod/solepod/pkg/tokenauth"
	"github.com/solepod/solepod/pkg/webhook"
)

// shutdownTimeout is how long running admissions may take to end after
// SIGTERM. It exceeds the longest timeout a webhook can have (30 s).
const shutdownTimeout = 35 * time.Second

// reclaimRate is the maximum number of pods that are reclaimed in a second.
const reclaimRate = 5

type serveOptions struct {
	kubeconfig             string
	systemNamespace        string
	config                 string
	webhookBindAddress     string
	certDir                string
	certSecret             string
	certLifetime           time.Duration
	clients                certs.Clients
	metricsBindAddress     string
	metricsAuthorization   bool
	healthProbeBindAddress string
	leaderElect            bool
	shutdownDelay          time.Duration
	reclaimOlderThan       time.Duration
	maxStaleness           time.Duration
	memoryLimit            int64
	logLevel               string
	logFormat              string
}

func newServeCommand() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the admission webhook",
		Long: `Run the admission webhook.

It serves TLS 1.3. With --cert-secret, the leader issues and renews the
certificates. With --cert-dir, they are the files tls.crt and tls.key of a
directory, which are reloaded when they change.

/readyz at --health-probe-bind-address returns 200 when the caches are filled
and the webhook serves. It fails when the API server has sent no watch event or
bookmark for --max-staleness. After SIGTERM, the webhook keeps serving for
--shutdown-delay and then finishes the running reviews.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.ErrOrStderr())
		},
	}
	addSystemNamespace(cmd, &o.systemNamespace)
	flags := cmd.Flags()
	flags.StringVar(&o.systemNamespace, "namespace", o.systemNamespace, "the former name of --system-namespace")
	flags.Lookup("namespace").Hidden = true
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file; default: KUBECONFIG, the ServiceAccount of the pod, or ~/.kube/config")
	flags.StringVar(&o.config, "config", "", "configuration file (solepod.io/v1alpha1 Configuration); default: the default of each field")
	flags.StringVar(&o.webhookBindAddress, "webhook-bind-address", ":9443", "host:port of the webhook")
	flags.StringVar(&o.certDir, "cert-dir", "", "directory with tls.crt and tls.key, for example a Secret of cert-manager")
	flags.StringVar(&o.certSecret, "cert-secret", "", "Secret in --system-namespace in which the leader keeps the certificates that it issues; the leader also sets the caBundle of the webhook configurations")
	flags.DurationVar(&o.certLifetime, "cert-lifetime", 90*24*time.Hour, "lifetime of the certificates in --cert-secret; the leader renews them when a third of it is left; with less than 2m a certificate can expire before a killed leader is replaced")
	flags.StringVar(&o.clients.CAFile, "client-ca-file", "", "CA certificates that the client certificates of API servers are verified with; default: clients need no certificate")
	flags.StringSliceVar(&o.clients.Names, "client-allowed-names", nil, "common names that client certificates may have; default: all")
	flags.StringVar(&o.metricsBindAddress, "metrics-bind-address", ":8080", "host:port of /metrics, 0 for none")
	flags.BoolVar(&o.metricsAuthorization, "metrics-authorization", false, "serve /metrics by TLS, with the certificate of the webhook, and only to clients whose bearer token the API server accepts and authorizes to get /metrics")
	flags.StringVar(&o.healthProbeBindAddress, "health-probe-bind-address", ":8081", "host:port of /healthz and /readyz, 0 for none")
	flags.BoolVar(&o.leaderElect, "leader-elect", false, "run background work on one replica only; all replicas serve reviews")
	flags.DurationVar(&o.shutdownDelay, "shutdown-delay", 0, "time to keep serving after SIGTERM, until API servers no longer send reviews to this replica")
	flags.DurationVar(&o.reclaimOlderThan, "reclaim-older-than", 0, "remove leftover task pods this long after they ended, as solepod reclaim does; default: never")
	flags.DurationVar(&o.maxStaleness, "max-staleness", time.Minute, "maximum age of cached pods, namespaces and ServiceAccounts; beyond it, this replica is not ready and handles reviews according to onError")
	flags.Int64Var(&o.memoryLimit, "memory-limit", 0, "memory limit of the container in bytes; near nine tenths of it, garbage is collected more often; 0 for GOMEMLIMIT, if that is set")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error; debug logs admitted pods, too")
	flags.StringVar(&o.logFormat, "log-format", "json", "json or text")
	cmd.MarkFlagsOneRequired("cert-dir", "cert-secret")
	cmd.MarkFlagsMutuallyExclusive("cert-dir", "cert-secret")
	cmd.MarkFlagsMutuallyExclusive("system-namespace", "namespace")
	return cmd
}

// completed are the options of serve after validation.
type completed struct {
	*serveOptions
	log          logr.Logger
	config       config.Configuration
	rest         *rest.Config
	certificates certs.Source
	host         string
	port         int
}

// complete validates all options.
func (o *serveOptions) complete(stderr io.Writer) (c completed, err error) {
	c.serveOptions = o
	if c.log, err = o.logger(stderr); err != nil {
		return c, err
	}
	if c.config, err = config.Load(o.config); err != nil {
		return c, err
	}
	if c.host, c.port, err = splitHostPort(o.webhookBindAddress); err != nil {
		return c, fmt.Errorf("--webhook-bind-address: %w", err)
	}
	if o.maxStaleness < webhook.MinStaleness {
		return c, fmt.Errorf("--max-staleness %s: want at least %s", o.maxStaleness, webhook.MinStaleness)
	}
	if o.memoryLimit < 0 {
		return c, fmt.Errorf("--memory-limit %d: want bytes, or 0 for none", o.memoryLimit)
	}
	if o.reclaimOlderThan < 0 {
		return c, fmt.Errorf("--reclaim-older-than %s: want 0 or more", o.reclaimOlderThan)
	}
	load := ctrl.GetConfig
	if o.kubeconfig != "" {
		load = func() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", o.kubeconfig) }
	}
	if c.rest, err = identified(load()); err != nil {
		return c, err
	}
	c.certificates, err = o.newCertificates()
	return c, err
}

func (o *serveOptions) run(ctx context.Context, stderr io.Writer) error {
	c, err := o.complete(stderr)
	if err != nil {
		return err
	}
	ctrl.SetLogger(c.log)
	klog.SetLogger(c.log)
	// Most of the heap is the caches, which stay. It may grow by half before the
	// next collection, and need not double.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	// A tenth is for what the runtime does not count. With all of the limit, the kernel
	// kills the process before the collector has done more.
	if o.memoryLimit > 0 {
		debug.SetMemoryLimit(o.memoryLimit / 10 * 9)
	}
	c.log.Info("Starting solepod", "version", version, "configuration", c.config.String())

	fresh := webhook.NewFreshness(o.maxStaleness)
	mgr, err := c.newManager(fresh)
	if err != nil {
		return fmt.Errorf("connecting to the API server: %w", err)
	}
	// Uncached, and on the connections of the manager.
	api, err := client.New(mgr.GetConfig(), client.Options{
		HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper(),
	})
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	lead, err := leader.New(mgr, leader.Options{Elect: c.leaderElect, Namespace: c.systemNamespace, Name: installation.Name})
	if err != nil {
		return err
	}
	if err := c.certificates.SetupWithManager(ctx, mgr); err != nil {
		return fmt.Errorf("setting up the certificates: %w", err)
	}
	lead.Add(func(term manager.Manager) error { return c.certificates.SetupLeader(term, api) })
	if err := errors.Join(metrics.Registry.Register(certs.Expiry(c.certificates)), metrics.Registry.Register(certs.Renewal(c.certificates))); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	if err := webhook.Setup(ctx, mgr, lead, api, o.systemNamespace, c.config, fresh); err != nil {
		return err
	}
	if err := c.addReclaim(mgr, lead); err != nil {
		return err
	}
	return o.serve(ctx, mgr)
}

func (c completed) newManager(fresh *webhook.Freshness) (ctrl.Manager, error) {
	cacheOptions := webhook.CacheOptions(c.systemNamespace, c.config.EnvironmentLabel, fresh)
	maps.Copy(cacheOptions.ByObject, c.certificates.Cache())
	timeout := shutdownTimeout
	return ctrl.NewManager(c.rest, ctrl.Options{
		Scheme: scheme.Scheme,
		Logger: c.log,
		Cache:  cacheOptions,
		WebhookServer: c.clients.Server(ctrlwebhook.NewServer(ctrlwebhook.Options{
			Host: c.host, Port: c.port,
			TLSOpts: []func(*tls.Config){certs.TLS(c.certificates, c.clients)},
		})),
		Metrics:                c.metricsOptions(),
		HealthProbeBindAddress: c.healthProbeBindAddress,
		// The manager elects no leader: see package leader.
		GracefulShutdownTimeout: &timeout,
		// Reading the kinds from the API server would need one that responds.
		MapperProvider: func(*rest.Config, *http.Client) (meta.RESTMapper, error) { return kinds(), nil },
	})
}

func (c completed) metricsOptions() metricsserver.Options {
	o := metricsserver.Options{BindAddress: c.metricsBindAddress}
	if c.metricsAuthorization {
		o.FilterProvider = tokenauth.Filter
		o.SecureServing = true // the tokens are secret
		o.TLSOpts = []func(*tls.Config){certs.TLS(c.certificates, certs.Clients{})}
	}
	return o
}

// kinds are the kinds that solepod serve reads or writes. With them, it starts while the
// API server does not respond, and is ready when its caches are filled.
func kinds() meta.RESTMapper {
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, kind := range []string{"Pod", "ServiceAccount", "Secret"} {
		mapper.Add(corev1.SchemeGroupVersion.WithKind(kind), meta.RESTScopeNamespace)
	}
	mapper.Add(coordinationv1.SchemeGroupVersion.WithKind("Lease"), meta.RESTScopeNamespace)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Namespace"), meta.RESTScopeRoot)
	for _, kind := range []string{"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"} {
		mapper.Add(admissionregistrationv1.SchemeGroupVersion.WithKind(kind), meta.RESTScopeRoot)
	}
	return mapper
}

// serve runs the manager until ctx ends, and then for the shutdown delay.
func (o *serveOptions) serve(ctx context.Context, mgr ctrl.Manager) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	context.AfterFunc(ctx, func() { time.AfterFunc(o.shutdownDelay, stop) })
	stopped := make(chan error, 1)
	go func() { stopped <- mgr.Start(serving) }()
	select {
	case err := <-stopped:
		return err
	case <-ctx.Done():
	}
	select {
	case <-mgr.Elected(): // the manager elects itself when all its caches are filled
		return <-stopped
	default:
		return nil // it never stops while they are filling, and has admitted nothing
	}
}

// addReclaim adds the controller that removes leftovers, if it is wanted.
func (c completed) addReclaim(mgr ctrl.Manager, lead *leader.Leader) error {
	if c.reclaimOlderThan == 0 {
		return nil
	}
	controller := audit.NewController(
		audit.Source{Client: mgr.GetAPIReader(), Namespace: c.systemNamespace, Configuration: c.config},
		audit.Options{Settings: c.config.Policy(), OlderThan: c.reclaimOlderThan},
		audit.Reclaimer{Client: mgr.GetClient(), Limiter: flowcontrol.NewTokenBucketRateLimiter(reclaimRate, 1)},
	)
	lead.Add(func(term manager.Manager) error { return term.Add(controller) })
	if err := metrics.Registry.Register(controller); err != nil {
		return fmt.Errorf("adding the reclaim controller: %w", err)
	}
	return nil
}

// newCertificates returns the source of the serving certificates.
func (o *serveOptions) newCertificates() (certs.Source, error) {
	if len(o.clients.Names) > 0 && o.clients.CAFile == "" {
		return nil, errors.New("--client-allowed-names: want --client-ca-file, too")
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
		Secret:  types.NamespacedName{Namespace: o.systemNamespace, Name: o.certSecret},
		Service: installation.Name, Configurations: installation.Name, Lifetime: o.certLifetime,
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
