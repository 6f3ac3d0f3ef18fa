//go:build browser

// Package page tests the page of solepod audit in a real browser.
package page

import (
	"context"
	"fmt"
	"image"
	"image/png"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/solepod/solepod/pkg/audit"
	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/page"
	"github.com/solepod/solepod/pkg/taskpod"
)

// sample has something of everything.
func sample() audit.Report {
	now := time.Date(2023, 3, 8, 9, 34, 0, 0, time.UTC)
	pod := func(name, task, environment, try string, age, ended time.Duration) audit.Pod {
		p := audit.Pod{Pod: taskpod.Pod{
			Namespace: "data-jobs", Name: name, UID: types.UID(name), Phase: corev1.PodRunning, Created: now.Add(-age), Stamped: environment == "alpha",
			Labels: map[string]string{
				"kubernetes_pod_operator": "True", "dag_id": "foo-bar-dag-id", "task_id": task,
				"run_id": "scheduled__2023-03-08T0130000000-77fa57adf", "try_number": try, "airflow-environment": environment,
			},
		}}
		if ended > 0 {
			p.Phase, p.Ended = corev1.PodFailed, now.Add(-ended)
		}
		return p
	}
	pods := []audit.Pod{
		pod("export-action-log-3e1c5f2a", "export-action-log", "alpha", "1", 4*time.Minute, 0),
		pod("export-action-log-9bd10c77", "export-action-log", "production", "1", 3*time.Minute, 0),
		pod("load-accounts-1d0a", "load-accounts", "production", "1", 90*time.Minute, 0),
		pod("load-accounts-2b7f", "load-accounts", "production", "2", 20*time.Minute, 0),
		pod("report-0c41", "report", "staging", "1", 50*time.Hour, 0),
	}
	for i, ended := range []time.Duration{90 * time.Minute, 2 * time.Hour, 5 * time.Hour, 8 * time.Hour, 30 * time.Hour, 60 * time.Hour, 70 * time.Hour, 400 * time.Hour} {
		pods = append(pods, pod(fmt.Sprintf("import-%04x", 4711*(i+3)), fmt.Sprintf("import-%d", i), "alpha", "1", ended+time.Hour, ended))
	}
	cfg := config.Default()
	id, _ := pod("x", "transform", "alpha", "1", 0, 0).Identity()
	report := audit.Scan(audit.Cluster{
		Pods: pods, Environments: map[string]bool{"alpha": true, "production": true},
		Claims: []audit.Claim{{Name: "claim-0f1e2d3c4b5a69788796a5b4c3d2e1f0", Identity: id, Holders: []claim.Holder{
			{Pod: "transform-77aa", UID: "x", Environment: "alpha", ClaimedAt: metav1.NewTime(now.Add(-time.Second))},
		}}},
	}, audit.Options{Settings: cfg.Policy(), OlderThan: time.Hour, Now: now})
	report.PodsWithoutClaims = nil
	return report
}

func chromium(t *testing.T, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	args = append([]string{
		"--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
		"--user-data-dir=" + t.TempDir(), "--host-resolver-rules=MAP * ~NOTFOUND",
	}, args...)
	cmd := exec.CommandContext(ctx, "chromium", args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	return out
}

// colours counts the pixels of each colour.
func colours(t *testing.T, file string) (image.Rectangle, map[[3]uint32]int) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	picture, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	counts := map[[3]uint32]int{}
	for y := range picture.Bounds().Dy() {
		for x := range picture.Bounds().Dx() {
			r, g, b, _ := picture.At(x, y).RGBA()
			counts[[3]uint32{r >> 8, g >> 8, b >> 8}]++
		}
	}
	return picture.Bounds(), counts
}

func TestPage(t *testing.T) {
	// Look at them: SCREENSHOTS=FOLDER keeps them.
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		dir = t.TempDir()
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "page.html")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := page.Render(f, sample()); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	address := (&url.URL{Scheme: "file", Path: file}).String()

	dom := string(chromium(t, "--dump-dom", address))
	for _, want := range []string{"export-action-log-3e1c5f2a", "More than one pod running with labels", "SupersededTry", "UnknownEnvironment", "does not declare itself", "transform-77aa"} {
		if !strings.Contains(dom, want) {
			t.Errorf("no %q on the page", want)
		}
	}
	if strings.Contains(dom, "<script") {
		t.Error("there is a script on the page")
	}
	for _, size := range []struct{ name, window string }{{"desktop", "1280,2700"}, {"phone", "420,4000"}} {
		picture := filepath.Join(dir, size.name+".png")
		chromium(t, "--window-size="+size.window, "--screenshot="+picture, address)
		bounds, counts := colours(t, picture)
		// Paper, cards, the red of collisions and the blue of leftovers, each on
		// some area.
		for name, colour := range map[string][3]uint32{
			"paper": {0xf6, 0xf7, 0xf9}, "card": {0xff, 0xff, 0xff}, "collision": {0xc4, 0x32, 0x0a}, "leftover": {0x2f, 0x6f, 0xdd},
		} {
			if counts[colour] < 500 {
				t.Errorf("%s %v: %d pixels of %s", size.name, bounds, counts[colour], name)
			}
		}
	}
}
