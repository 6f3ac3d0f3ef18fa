// Package installation names the objects of an installation, and reads its
// configuration from the cluster.
package installation

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/config"
)

const (
	// Name is the name of the Deployment, the Service, the ConfigMap, the
	// ServiceAccount, the leader election Lease and both webhook configurations.
	Name = "solepod"
	// DefaultNamespace is the namespace that the documentation installs into.
	DefaultNamespace = "solepod-system"
)

// Names of hooks in the webhook configurations.
const (
	StampHook   = "stamp.solepod.io"
	OwnerHook   = "owner.solepod.io"
	GuardHook   = "guard.solepod.io"
	AccessHook  = "access.solepod.io"
	ConnectHook = "connect.solepod.io"
)

// Configuration reads the configuration of the installation in a namespace.
// found is false if its ConfigMap does not exist.
func Configuration(ctx context.Context, c client.Reader, namespace string) (cfg config.Configuration, found bool, err error) {
	const file = "config.yaml"
	var m corev1.ConfigMap
	err = c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: Name}, &m)
	if apierrors.IsNotFound(err) {
		return config.Configuration{}, false, nil
	}
	if err != nil {
		return config.Configuration{}, false, fmt.Errorf("reading ConfigMap %s/%s: %w", namespace, Name, err)
	}
	cfg, err = config.Parse([]byte(m.Data[file]))
	if err != nil {
		return config.Configuration{}, true, fmt.Errorf("%s of ConfigMap %s/%s: %w", file, namespace, Name, err)
	}
	return cfg, true, nil
}
