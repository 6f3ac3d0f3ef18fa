package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// goroutines is how many goroutines a guard has.
func goroutines(t *testing.T, g *solepod.Process) int {
	t.Helper()
	metrics, err := g.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n, err := controlplane.Sum(metrics, "go_goroutines", nil)
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

// What a review starts has ended with it, be it admitted, denied, refused or
// broken off in the middle.
func TestNothingIsLeftRunning(t *testing.T) {
	if testing.Short() {
		t.Skip("make test-slow runs it")
	}
	w := newWorld(t, "leaks")
	g := shared.Own(t, plane, solepod.Options{})
	alpha, production := w.airflow("alpha"), w.airflow("production")
	load := func(rounds int) {
		for i := range rounds {
			name := fmt.Sprint("x-", i)
			pod := w.mustCreate(alpha, name+" dag_id="+name)
			if _, err := w.create(production, "other-"+name+" dag_id="+name); err == nil {
				t.Fatalf("a second %s was admitted", name)
			}
			if err := alpha.Delete(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
			for _, body := range []io.Reader{
				bytes.NewReader([]byte("{{{")),
				io.MultiReader(bytes.NewReader(review(t, w.pod("half"))[:100]), broken{}),
			} {
				// The second one gets no answer, and its connection ends.
				if r, _, err := post(t, g, body); err == nil && r.Allowed {
					t.Fatalf("%+v", r)
				}
			}
		}
		w.eventuallyHeld()
	}
	load(5) // what stays, such as connections to the API server, is there
	before := goroutines(t, g)
	load(100)
	fixture.Eventually(t, func() error {
		// A few come and go at all times.
		if after := goroutines(t, g); after > before+10 {
			return fmt.Errorf("%d goroutines before, %d after", before, after)
		}
		return nil
	})
}

// A client that sends half a review holds memory of solepod only until the timeout of
// its request.
func TestHalfAReview(t *testing.T) {
	w := newWorld(t, "half")
	g := shared.Run(t, plane)
	half, writer := io.Pipe()
	defer func() { _ = writer.Close() }()
	go func() { _, _ = writer.Write(review(t, w.pod("x"))[:100]) }()
	r, _, err := postTo(t, g, "/guard?timeout=1s", half)
	if err != nil || r.Allowed || r.Result.Code != http.StatusBadRequest || !strings.Contains(r.Result.Message, "timeout") {
		t.Errorf("%v: %+v", err, r)
	}
}

// broken ends a request in the middle of its body.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("broken off") }
