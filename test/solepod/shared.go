package solepod

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/solepod/solepod/test/controlplane"
)

// Shared is one guard for the tests of a package, which run one after another.
// It saves starting a guard for each of them. The zero value with Options is
// ready for use; TestMain stops it.
type Shared struct {
	Options Options
	process *Process
}

// Run returns the shared guard, and starts it if it does not run. A test must
// leave it as it was; one that cannot takes Own.
func (s *Shared) Run(t testing.TB, plane *controlplane.ControlPlane) *Process {
	t.Helper()
	dependOnVersion(t)
	if s.process == nil {
		g, err := Start(t.Context(), plane, s.Options)
		if err != nil {
			t.Fatal(err)
		}
		s.process = g
		if err := g.Install(t.Context()); err != nil {
			t.Fatal(errors.Join(err, s.Stop()))
		}
	}
	begin := make([]int64, len(s.process.Replicas))
	for i, replica := range s.process.Replicas {
		info, err := os.Stat(replica.Log)
		if err != nil {
			t.Fatal(err)
		}
		begin[i] = info.Size()
	}
	t.Cleanup(func() {
		for i, replica := range s.process.Replicas {
			select {
			case <-replica.Done():
				t.Errorf("replica %d has ended: %v", i, replica.Err())
			default:
			}
			if t.Failed() {
				log, err := os.ReadFile(replica.Log)
				t.Logf("what replica %d has logged meanwhile (%v):\n%s", i, err, log[min(begin[i], int64(len(log))):])
			}
		}
		if t.Failed() { // the next test gets another one
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		}
	})
	return s.process
}

// Own stops the shared guard, as both cannot be installed at a time, and runs
// one for this test alone.
func (s *Shared) Own(t testing.TB, plane *controlplane.ControlPlane, o Options) *Process {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	return Run(t, plane, o)
}

// Stop removes and stops the shared guard if it runs.
func (s *Shared) Stop() error {
	g := s.process
	if g == nil {
		return nil
	}
	s.process = nil
	return errors.Join(g.Uninstall(context.Background()), g.Stop())
}

// Main is a testing.M whose Run stops the shared guard at its end.
type Main struct {
	M      interface{ Run() int }
	Shared *Shared
}

// Run runs the tests and returns the exit code.
func (m Main) Run() int {
	code := m.M.Run()
	if err := m.Shared.Stop(); err != nil {
		_, _ = os.Stderr.WriteString("stopping solepod: " + err.Error() + "\n")
		return 1
	}
	return code
}
