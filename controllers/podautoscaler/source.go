package podautoscaler

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"coracle.dev/coracle/api"
)

// The groups that are asked beside the resource metrics API.
const (
	customGroup   = "custom.metrics.k8s.io"
	externalGroup = "external.metrics.k8s.io"
)

// Metrics is where the figures come from. It is safe for concurrent use.
type Metrics struct {
	// Registry maps kinds to the resources in the paths of custom metrics.
	Registry *api.Registry
	// Pods lists what the pods of a namespace use that a selector matches (metrics.k8s.io). Those of which nothing is known are left out.
	Pods func(ctx context.Context, namespace string, sel labels.Selector) ([]metricsv1beta1.PodMetrics, error)
	// Aggregated is the server behind the APIService of a group version, nil if there is none. Requests carry the loop's
	// user in their context.
	Aggregated func(group, version string) http.Handler
}

// answer is what one metric is.
type answer struct {
	pods map[string]sample // of metrics that each pod has
	// values are those of the others, in thousandths.
	values []int64
	// err says why there is nothing; unasked, why nothing could even be asked.
	err, unasked error
}

// sample is what one pod's metric is, in thousandths.
type sample struct {
	value  int64
	at     time.Time
	window time.Duration
}

// total is the sum of the values, as far as it can be told.
func (a *answer) total() int64 {
	sum := int64(0)
	for _, v := range a.values {
		if v > 0 && sum > math.MaxInt64-v {
			return math.MaxInt64
		}
		sum += v
	}
	return sum
}

// patience is how long one source may take to answer.
const patience = 15 * time.Second

// answer asks for every metric. Answers stand in the order of the metrics.
func (m *Metrics) answer(ctx context.Context, namespace string, sel labels.Selector, specs []autoscalingv2.MetricSpec) []answer {
	out := make([]answer, len(specs))
	var pods []metricsv1beta1.PodMetrics
	var err error
	listed := false
	usage := func(name corev1.ResourceName, container string) answer {
		if !listed { // once for all metrics
			pods, err = m.list(ctx, namespace, sel)
			listed = true
		}
		if err != nil {
			return answer{err: err}
		}
		return answer{pods: samples(pods, name, container)}
	}
	for i := range specs {
		switch s := &specs[i]; {
		case s.Resource != nil && s.Type == autoscalingv2.ResourceMetricSourceType:
			out[i] = usage(s.Resource.Name, "")
		case s.ContainerResource != nil && s.Type == autoscalingv2.ContainerResourceMetricSourceType:
			out[i] = usage(s.ContainerResource.Name, s.ContainerResource.Container)
		case s.Pods != nil && s.Type == autoscalingv2.PodsMetricSourceType:
			out[i] = m.custom(ctx, namespace, schema.GroupKind{Kind: "Pod"}, "*", sel, s.Pods.Metric)
		case s.Object != nil && s.Type == autoscalingv2.ObjectMetricSourceType:
			o := s.Object.DescribedObject
			gk := schema.FromAPIVersionAndKind(o.APIVersion, o.Kind).GroupKind()
			out[i] = m.custom(ctx, namespace, gk, o.Name, nil, s.Object.Metric)
		case s.External != nil && s.Type == autoscalingv2.ExternalMetricSourceType:
			out[i] = m.external(ctx, namespace, s.External.Metric)
		}
	}
	return out
}

func (m *Metrics) list(ctx context.Context, namespace string, sel labels.Selector) ([]metricsv1beta1.PodMetrics, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var pods []metricsv1beta1.PodMetrics
	var err error
	if h := m.aggregated(metricsv1beta1.GroupName, "v1beta1"); h != nil {
		var list metricsv1beta1.PodMetricsList
		q := url.Values{"labelSelector": {sel.String()}}
		err = get(ctx, h, schema.GroupResource{Group: metricsv1beta1.GroupName, Resource: "pods"}, "", []string{"v1beta1", "namespaces", namespace, "pods"}, q, &list)
		pods = list.Items
	} else {
		pods, err = m.Pods(ctx, namespace, sel)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("unable to fetch metrics from resource metrics API: %w", err)
	case len(pods) == 0:
		return nil, errors.New("no metrics returned from resource metrics API")
	}
	return pods, nil
}

func (m *Metrics) aggregated(group, version string) http.Handler {
	if m.Aggregated == nil {
		return nil
	}
	return m.Aggregated(group, version)
}

// samples takes one resource out of the metrics of pods: of one container, or the sum of all, if all have it.
func samples(pods []metricsv1beta1.PodMetrics, name corev1.ResourceName, container string) map[string]sample {
	out := make(map[string]sample, len(pods))
	for i := range pods {
		pod := &pods[i]
		sum, complete := int64(0), false
		for j := range pod.Containers {
			c := &pod.Containers[j]
			if container != "" && c.Name != container {
				continue
			}
			use, ok := c.Usage[name]
			if complete = ok; !ok {
				break
			}
			sum += use.MilliValue()
		}
		if complete {
			out[pod.Name] = sample{value: sum, at: pod.Timestamp.Time, window: pod.Window.Duration}
		}
	}
	return out
}

// values is a list of custom or external metrics in any version that they have.
type values struct {
	Items []struct {
		DescribedObject corev1.ObjectReference `json:"describedObject"`
		Timestamp       metav1.Time            `json:"timestamp"`
		// Window is that of v1beta1.
		Window        *int64            `json:"window"`
		WindowSeconds *int64            `json:"windowSeconds"`
		Value         resource.Quantity `json:"value"`
	} `json:"items"`
}

// customWindow is what the value of a custom metric is the mean of that does not say it.
const customWindow = time.Minute

// custom asks for a metric of one object, or with "*" for that of all that sel matches.
func (m *Metrics) custom(ctx context.Context, namespace string, gk schema.GroupKind, name string, sel labels.Selector, metric autoscalingv2.MetricIdentifier) answer {
	selector, err := metricSelector(metric.Selector)
	if err != nil {
		return answer{unasked: err}
	}
	list, err := m.askCustom(ctx, namespace, gk, name, sel, metric.Name, selector)
	if err == nil && sel == nil && len(list.Items) != 1 {
		err = fmt.Errorf("the custom metrics API server returned %v results when we asked for exactly one", len(list.Items))
	}
	switch {
	case err != nil:
		return answer{err: fmt.Errorf("unable to fetch metrics from custom metrics API: %w", err)}
	case len(list.Items) == 0:
		return answer{err: errors.New("no metrics returned from custom metrics API")}
	case sel == nil:
		return answer{values: []int64{list.Items[0].Value.MilliValue()}}
	}
	out := answer{pods: make(map[string]sample, len(list.Items))}
	for i := range list.Items {
		v := &list.Items[i]
		s := sample{value: v.Value.MilliValue(), at: v.Timestamp.Time, window: customWindow}
		for _, w := range []*int64{v.Window, v.WindowSeconds} {
			if w != nil {
				s.window = time.Duration(*w) * time.Second
			}
		}
		out.pods[v.DescribedObject.Name] = s
	}
	return out
}

func (m *Metrics) askCustom(ctx context.Context, namespace string, gk schema.GroupKind, name string, sel labels.Selector, metric, selector string) (*values, error) {
	var server http.Handler
	version := ""
	for _, version = range []string{"v1beta2", "v1beta1"} {
		if server = m.aggregated(customGroup, version); server != nil {
			break
		}
	}
	if server == nil {
		return nil, fmt.Errorf("no custom metrics API (%s) registered", customGroup)
	}
	path, gr := []string{version, "namespaces", namespace}, schema.GroupResource{Group: customGroup, Resource: "metrics"}
	if gk == (schema.GroupKind{Kind: "Namespace"}) {
		path, name = append(path, "metrics", metric), metric
	} else {
		kind := m.Registry.ByKind(gk)
		if kind == nil {
			return nil, fmt.Errorf("unable to map kind %s to resource: %v", gk, &meta.NoKindMatchError{GroupKind: gk})
		}
		gr.Resource = kind.Name()
		path = append(path, kind.Name(), name, metric)
	}
	q := url.Values{}
	if sel != nil && !sel.Empty() {
		q.Set("labelSelector", sel.String())
	}
	if selector != "" {
		q.Set("metricLabelSelector", selector)
	}
	list := &values{}
	return list, get(ctx, server, gr, name, path, q, list)
}

// external asks for all values of a metric from outside.
func (m *Metrics) external(ctx context.Context, namespace string, metric autoscalingv2.MetricIdentifier) answer {
	selector, err := metricSelector(metric.Selector)
	if err != nil {
		return answer{unasked: err}
	}
	gr := schema.GroupResource{Group: externalGroup, Resource: metric.Name}
	list := &values{}
	if server := m.aggregated(externalGroup, "v1beta1"); server == nil {
		err = apierrors.NewGenericServerResponse(http.StatusNotFound, "get", gr, "", "", 0, false)
	} else {
		q := url.Values{}
		if selector != "" {
			q.Set("labelSelector", selector)
		}
		err = get(ctx, server, gr, "", []string{"v1beta1", "namespaces", namespace, metric.Name}, q, list)
	}
	switch {
	case err != nil:
		return answer{err: fmt.Errorf("unable to fetch metrics from external metrics API: %w", err)}
	case len(list.Items) == 0:
		return answer{err: errors.New("no metrics returned from external metrics API")}
	}
	var out answer
	for i := range list.Items {
		out.values = append(out.values, list.Items[i].Value.MilliValue())
	}
	return out
}

// get asks a server in this process, and says what went wrong as a client of the API would.
func get(ctx context.Context, h http.Handler, gr schema.GroupResource, name string, path []string, q url.Values, into any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	u := &url.URL{Path: "/apis/" + gr.Group + "/" + strings.Join(path, "/"), RawQuery: q.Encode()}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	r.Header.Set("Accept", "application/json")
	w := &response{header: http.Header{}, code: http.StatusOK}
	h.ServeHTTP(w, r)
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.code == http.StatusOK {
		if w.full {
			return fmt.Errorf("the answer is longer than %d bytes", mostBytes)
		}
		return json.Unmarshal(w.body.Bytes(), into)
	}
	var status metav1.Status
	if json.Unmarshal(w.body.Bytes(), &status) == nil && status.Kind == "Status" && status.Status == metav1.StatusFailure {
		return &apierrors.StatusError{ErrStatus: status}
	}
	return apierrors.NewGenericServerResponse(w.code, "get", gr, name, strings.TrimSpace(w.body.String()), 0, true)
}

// mostBytes of an answer are read: it may not fill the memory.
const mostBytes = 32 << 20

// response is an http.ResponseWriter that keeps a bounded body.
type response struct {
	header http.Header
	code   int
	wrote  bool
	body   bytes.Buffer
	full   bool
}

// Header implements http.ResponseWriter.
func (w *response) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(code int) {
	if !w.wrote && code >= 200 {
		w.code, w.wrote = code, true
	}
}

// Write implements http.ResponseWriter.
func (w *response) Write(p []byte) (int, error) {
	w.wrote = true
	if w.body.Len()+len(p) > mostBytes {
		w.full = true
		return 0, errors.New("the answer is too long")
	}
	return w.body.Write(p)
}

// Flush implements http.Flusher.
func (w *response) Flush() {}
