package metricsapi

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	metrics "k8s.io/metrics/pkg/client/clientset/versioned"
)

// machine is a node whose clock stands still unless somebody waits.
type machine struct {
	now     time.Time
	samples int
	// started is when the container did.
	started time.Time
}

func (m *machine) sample(context.Context) ([]NodeSample, error) {
	m.samples++
	up := m.now.Sub(t0)
	run := m.now.Sub(m.started)
	return []NodeSample{{
		Node: "node-a", Labels: map[string]string{"zone": "x"},
		Usage: Usage{Time: m.now, Started: t0, CPUNanos: uint64(up / 4), WorkingSetBytes: 64 << 20},
		Pods: []PodSample{
			{Namespace: "default", Name: "web", UID: "1", Labels: map[string]string{"app": "web"}, Containers: []ContainerSample{
				{Name: "app", ID: "c1", Usage: Usage{Time: m.now, Started: m.started, CPUNanos: uint64(run / 2), WorkingSetBytes: 1 << 20}},
				{Name: "side", ID: "c2", Usage: Usage{Time: m.now, Started: m.started, CPUNanos: 0, WorkingSetBytes: 2 << 20}},
			}},
			{Namespace: "other", Name: "db", UID: "2", Containers: []ContainerSample{
				{Name: "db", ID: "c3", Usage: Usage{Time: m.now, Started: m.started, CPUNanos: uint64(run), WorkingSetBytes: 3 << 20}},
			}},
			{Namespace: "other", Name: "starting", UID: "3"},
		},
	}}, nil
}

func (m *machine) after(d time.Duration) <-chan time.Time {
	m.now = m.now.Add(d)
	c := make(chan time.Time, 1)
	c <- m.now
	return c
}

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func server(t *testing.T) (*machine, *httptest.Server) {
	m := &machine{now: t0.Add(time.Hour), started: t0}
	srv := httptest.NewServer(New(Config{Sample: m.sample, Now: func() time.Time { return m.now }, After: m.after, Log: slog.New(slog.DiscardHandler)}))
	t.Cleanup(srv.Close)
	return m, srv
}

func TestClient(t *testing.T) {
	for _, contentType := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		t.Run(contentType, func(t *testing.T) {
			_, srv := server(t)
			c, err := metrics.NewForConfig(&rest.Config{Host: srv.URL, ContentConfig: rest.ContentConfig{ContentType: contentType}})
			if err != nil {
				t.Fatal(err)
			}
			ctx := t.Context()
			nodes, err := c.MetricsV1beta1().NodeMetricses().List(ctx, metav1.ListOptions{LabelSelector: "zone=x"})
			if err != nil || len(nodes.Items) != 1 {
				t.Fatalf("%v %v", nodes, err)
			}
			n := nodes.Items[0]
			if cpu := n.Usage["cpu"]; cpu.String() != "250m" {
				t.Errorf("node uses %s", cpu.String())
			}
			if mem := n.Usage["memory"]; mem.String() != "64Mi" || n.Window.Duration != time.Second {
				t.Errorf("node memory %s over %s", mem.String(), n.Window.Duration)
			}
			if nodes, err = c.MetricsV1beta1().NodeMetricses().List(ctx, metav1.ListOptions{LabelSelector: "zone=y"}); err != nil || len(nodes.Items) != 0 {
				t.Fatalf("%v %v", nodes, err)
			}
			pods, err := c.MetricsV1beta1().PodMetricses("").List(ctx, metav1.ListOptions{})
			if err != nil || len(pods.Items) != 2 || pods.Items[0].Name != "web" || pods.Items[1].Name != "db" {
				t.Fatalf("%v %v", pods, err)
			}
			if cpu := pods.Items[0].Containers[0].Usage["cpu"]; cpu.String() != "500m" {
				t.Errorf("app uses %s", cpu.String())
			}
			pods, err = c.MetricsV1beta1().PodMetricses("other").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=db"})
			if err != nil || len(pods.Items) != 1 {
				t.Fatalf("%v %v", pods, err)
			}
			if _, err := c.MetricsV1beta1().PodMetricses("other").Get(ctx, "db", metav1.GetOptions{}); err != nil {
				t.Fatal(err)
			}
			_, err = c.MetricsV1beta1().PodMetricses("other").Get(ctx, "nope", metav1.GetOptions{})
			if !apierrors.IsNotFound(err) || err.Error() != `podmetrics.metrics.k8s.io "other/nope" not found` {
				t.Fatal(err)
			}
			_, err = c.MetricsV1beta1().NodeMetricses().Get(ctx, "nope", metav1.GetOptions{})
			if !apierrors.IsNotFound(err) || err.Error() != `nodemetrics.metrics.k8s.io "nope" not found` {
				t.Fatal(err)
			}
			_, err = c.MetricsV1beta1().PodMetricses("").List(ctx, metav1.ListOptions{FieldSelector: "status.phase=Running"})
			if !apierrors.IsBadRequest(err) {
				t.Fatal(err)
			}
		})
	}
}

// TestOnDemand: nothing is measured unless asked, an answer serves for a while, and regular asking costs one
// sample each time.
func TestOnDemand(t *testing.T) {
	m := &machine{now: t0.Add(time.Hour), started: t0}
	meter := &Meter{Sample: m.sample, Now: func() time.Time { return m.now }, After: m.after}
	read := func(wait time.Duration, wantSamples int, wantWindow time.Duration) {
		t.Helper()
		m.now = m.now.Add(wait)
		before := m.samples
		r, err := meter.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := m.samples - before; got != wantSamples || r.Nodes[0].Window != wantWindow {
			t.Fatalf("%d samples, window %s", got, r.Nodes[0].Window)
		}
	}
	read(0, 2, time.Second)
	read(time.Second, 0, time.Second)
	read(14*time.Second, 1, 15*time.Second)
	read(time.Hour, 2, time.Second)
}

func TestRestartedContainer(t *testing.T) {
	u := func(at, started int, cpu uint64) Usage {
		return Usage{Time: t0.Add(time.Duration(at) * time.Second), Started: t0.Add(time.Duration(started) * time.Second), CPUNanos: cpu}
	}
	node := func(id string, use Usage) []NodeSample {
		return []NodeSample{{Node: "n", Pods: []PodSample{{UID: "1", Containers: []ContainerSample{{Name: "a", ID: id, Usage: use}}}}}}
	}
	for _, c := range []struct {
		name          string
		before, after []NodeSample
		nano          uint64
		window        time.Duration
	}{
		{"same", node("x", u(10, 0, 1e9)), node("x", u(20, 0, 6e9)), 5e8, 10 * time.Second},
		{"new since", node("x", u(10, 0, 9e9)), node("y", u(20, 16, 1e9)), 25e7, 4 * time.Second},
		{"count fell", node("x", u(10, 0, 9e9)), node("x", u(20, 15, 1e9)), 2e8, 5 * time.Second},
		{"no time passed", node("x", u(20, 0, 9e9)), node("x", u(20, 0, 10e9)), 5e8, 20 * time.Second},
	} {
		got := rates(c.before, c.after)[0].Pods[0].Rates[0]
		if got.NanoCores != c.nano || got.Window != c.window {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

func TestTableAndDiscovery(t *testing.T) {
	_, srv := server(t)
	get := func(path, accept string, into any) int {
		t.Helper()
		req, _ := http.NewRequest("GET", srv.URL+path, nil)
		req.Header.Set("Accept", accept)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	var table metav1.Table
	get(Path+"/v1beta1/pods", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json", &table)
	if table.Kind != "Table" || len(table.Rows) != 2 || table.Rows[0].Cells[0] != "web" || table.Rows[0].Cells[1] != "500m" || table.Rows[0].Cells[2] != "3Mi" {
		t.Fatalf("%+v", table)
	}
	var list metav1.APIResourceList
	get(Path+"/v1beta1", "*/*", &list)
	if list.Kind != "APIResourceList" || len(list.APIResources) != 2 {
		t.Fatalf("%+v", list)
	}
	var group metav1.APIGroup
	get(Path, "", &group)
	if group.Name != Group || group.PreferredVersion.Version != "v1beta1" {
		t.Fatalf("%+v", group)
	}
	var status metav1.Status
	if code := get(Path+"/v2/pods", "", &status); code != 404 || status.Kind != "Status" || status.Reason != metav1.StatusReasonNotFound {
		t.Fatalf("%d %+v", code, status)
	}
}
