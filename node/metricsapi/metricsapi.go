// Package metricsapi serves the resource metrics API (metrics.k8s.io/v1beta1), on which kubectl top and
// the horizontal autoscaler stand, without a metrics-server.
//
// It owns the turning of samples into rates and the wire forms. It measures nothing itself, only what it is asked, and only
// when it is asked.
package metricsapi

import (
	"context"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"coracle.dev/coracle/internal/selector"
)

// Group and Version are those of the API; Path is what all its requests begin with.
const (
	Group   = "metrics.k8s.io"
	Version = "v1beta1"
	Path    = "/apis/" + Group
)

// Config is what the API is served from.
type Config struct {
	// Sample reads what all nodes and their pods have used so far. It is called on demand, up to
	// twice for a request.
	Sample func(ctx context.Context) ([]NodeSample, error)
	// Known is what needs no measuring; its functions may be nil.
	Known Known
	Log   *slog.Logger
	// Now and After are the clock, the real one if nil.
	Now   func() time.Time
	After func(time.Duration) <-chan time.Time
}

// Known gives rates that are known without measuring: those of simulated nodes and their pods.
type Known struct {
	// Nodes are the nodes without their pods; all, or the one of that name.
	Nodes func(name string) []NodeRate
	// Pods are those of a namespace, or of all with "", that a selector matches: all, or the one of that name. Containers that do not run
	// are left out.
	Pods func(namespace, name string, sel labels.Selector) []PodRate
}

// Server is the http.Handler of everything below Path. Requests have been authorized.
type Server struct {
	mux    *http.ServeMux
	meter  *Meter
	known  Known
	scheme *runtime.Scheme
	codecs serializer.CodecFactory
	log    *slog.Logger
}

// New makes a Server.
func New(cfg Config) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.After == nil {
		cfg.After = time.After
	}
	s := &Server{
		mux:    http.NewServeMux(),
		meter:  &Meter{Sample: cfg.Sample, Now: cfg.Now, After: cfg.After},
		known:  cfg.Known,
		scheme: runtime.NewScheme(),
		log:    cfg.Log,
	}
	utilruntime.Must(metricsv1beta1.AddToScheme(s.scheme))
	metav1.AddToGroupVersion(s.scheme, schema.GroupVersion{Version: "v1"})
	utilruntime.Must(metav1.AddMetaToScheme(s.scheme))
	s.codecs = serializer.NewCodecFactory(s.scheme)
	const base = "GET " + Path + "/" + Version
	s.mux.HandleFunc("GET "+Path, s.group)
	s.mux.HandleFunc(base, s.resources)
	s.mux.HandleFunc(base+"/nodes", s.listNodes)
	s.mux.HandleFunc(base+"/nodes/{name}", s.getNode)
	s.mux.HandleFunc(base+"/pods", s.listPods)
	s.mux.HandleFunc(base+"/namespaces/{namespace}/pods", s.listPods)
	s.mux.HandleFunc(base+"/namespaces/{namespace}/pods/{name}", s.getPod)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			s.fail(w, r, apierrors.NewMethodNotSupported(schema.GroupResource{Group: Group}, strings.ToLower(r.Method)))
			return
		}
		s.fail(w, r, &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
			Message: "the server could not find the requested resource", Details: &metav1.StatusDetails{},
		}})
	})
	return s
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// APIGroup is the group's entry in discovery.
func APIGroup() metav1.APIGroup {
	v := metav1.GroupVersionForDiscovery{GroupVersion: Group + "/" + Version, Version: Version}
	return metav1.APIGroup{
		TypeMeta:         metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"},
		Name:             Group,
		Versions:         []metav1.GroupVersionForDiscovery{v},
		PreferredVersion: v,
	}
}

// APIResources is what the group version serves.
func APIResources() metav1.APIResourceList {
	return metav1.APIResourceList{
		TypeMeta:     metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"},
		GroupVersion: Group + "/" + Version,
		APIResources: []metav1.APIResource{
			{Name: "nodes", Kind: "NodeMetrics", Verbs: metav1.Verbs{"get", "list"}},
			{Name: "pods", Kind: "PodMetrics", Namespaced: true, Verbs: metav1.Verbs{"get", "list"}},
		},
	}
}

func (s *Server) group(w http.ResponseWriter, r *http.Request) {
	g := APIGroup()
	s.write(w, r, http.StatusOK, schema.GroupVersion{Version: "v1"}, &g)
}

func (s *Server) resources(w http.ResponseWriter, r *http.Request) {
	l := APIResources()
	s.write(w, r, http.StatusOK, schema.GroupVersion{Version: "v1"}, &l)
}

// selection is what a list request selects.
type selection struct {
	labels labels.Selector
	fields fields.Selector
}

func selectionOf(r *http.Request) (selection, error) {
	sel := selection{labels.Everything(), fields.Everything()}
	q := r.URL.Query()
	var err error
	if v := q.Get("labelSelector"); v != "" {
		if sel.labels, err = labels.Parse(v); err != nil {
			return sel, apierrors.NewBadRequest(err.Error())
		}
	}
	if v := q.Get("fieldSelector"); v != "" {
		if sel.fields, err = fields.ParseSelector(v); err != nil {
			return sel, apierrors.NewBadRequest(err.Error())
		}
		for _, req := range sel.fields.Requirements() {
			if req.Field != "metadata.name" && req.Field != "metadata.namespace" {
				return sel, apierrors.NewBadRequest(fmt.Sprintf("field label not supported: %s", req.Field))
			}
		}
	}
	return sel, nil
}

func (sel selection) matches(namespace, name string, l map[string]string) bool {
	return sel.labels.Matches(labels.Set(l)) &&
		sel.fields.Matches(fields.Set{"metadata.name": name, "metadata.namespace": namespace})
}

// nodes lists what nodes use: all, or the one of that name.
func (s *Server) nodes(ctx context.Context, name string, want func(name string, l map[string]string) bool) ([]metricsv1beta1.NodeMetrics, error) {
	items := []metricsv1beta1.NodeMetrics{}
	if s.known.Nodes != nil {
		for _, n := range s.known.Nodes(name) {
			if want(n.Node, n.Labels) {
				items = append(items, nodeMetrics(&n))
			}
		}
	}
	if name != "" && len(items) > 0 {
		return items, nil
	}
	reading, err := s.meter.Read(ctx)
	if err != nil {
		return nil, err
	}
	for i := range reading.Nodes {
		if n := &reading.Nodes[i]; want(n.Node, n.Labels) {
			items = append(items, nodeMetrics(n))
		}
	}
	sort.Slice(items, func(i, j int) bool { return items[i].Name < items[j].Name })
	return items, nil
}

// pods lists what the pods of a namespace use, or those of all namespaces with "", that sel matches and want says yes to; all, or
// the one of that name.
func (s *Server) pods(ctx context.Context, namespace, podName string, sel labels.Selector, want func(namespace, name string, l map[string]string) bool) ([]metricsv1beta1.PodMetrics, error) {
	items := []metricsv1beta1.PodMetrics{}
	add := func(p *PodRate) {
		if len(p.Rates) > 0 && want(p.Namespace, p.Name, p.Labels) {
			items = append(items, podMetrics(p))
		}
	}
	if s.known.Pods != nil {
		known := s.known.Pods(namespace, podName, sel)
		for i := range known {
			add(&known[i])
		}
	}
	reading, err := s.meter.Read(ctx)
	if err != nil {
		return nil, err
	}
	for i := range reading.Nodes {
		for j := range reading.Nodes[i].Pods {
			p := &reading.Nodes[i].Pods[j]
			if (namespace == "" || p.Namespace == namespace) && (podName == "" || p.Name == podName) {
				add(p)
			}
		}
	}
	sort.Slice(items, func(i, j int) bool {
		a, b := &items[i], &items[j]
		if a.Namespace != b.Namespace {
			return a.Namespace < b.Namespace
		}
		return a.Name < b.Name
	})
	return items, nil
}

// Pods lists what the pods of a namespace use that a selector matches, in order of their names, for callers in this process. Pods without
// a running container are left out. What it measures is at most 5 s old.
func (s *Server) Pods(ctx context.Context, namespace string, sel labels.Selector) ([]metricsv1beta1.PodMetrics, error) {
	matches := selector.Matcher(sel)
	return s.pods(ctx, namespace, "", sel, func(_, _ string, l map[string]string) bool { return matches(l) })
}

func (s *Server) listNodes(w http.ResponseWriter, r *http.Request) {
	sel, err := selectionOf(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	items, err := s.nodes(r.Context(), "", func(name string, l map[string]string) bool { return sel.matches("", name, l) })
	if err != nil {
		s.fail(w, r, apierrors.NewInternalError(err))
		return
	}
	s.answer(w, r, &metricsv1beta1.NodeMetricsList{Items: items})
}

func (s *Server) getNode(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	items, err := s.nodes(r.Context(), name, func(n string, _ map[string]string) bool { return n == name })
	switch {
	case err != nil:
		s.fail(w, r, apierrors.NewInternalError(err))
	case len(items) == 0:
		s.fail(w, r, apierrors.NewNotFound(schema.GroupResource{Group: Group, Resource: "nodemetrics"}, name))
	default:
		s.answer(w, r, &items[0])
	}
}

func (s *Server) listPods(w http.ResponseWriter, r *http.Request) {
	sel, err := selectionOf(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	items, err := s.pods(r.Context(), r.PathValue("namespace"), "", sel.labels, sel.matches)
	if err != nil {
		s.fail(w, r, apierrors.NewInternalError(err))
		return
	}
	s.answer(w, r, &metricsv1beta1.PodMetricsList{Items: items})
}

func (s *Server) getPod(w http.ResponseWriter, r *http.Request) {
	namespace, name := r.PathValue("namespace"), r.PathValue("name")
	items, err := s.pods(r.Context(), namespace, name, labels.Everything(), func(string, string, map[string]string) bool { return true })
	switch {
	case err != nil:
		s.fail(w, r, apierrors.NewInternalError(err))
	case len(items) == 0:
		s.fail(w, r, apierrors.NewNotFound(schema.GroupResource{Group: Group, Resource: "podmetrics"}, namespace+"/"+name))
	default:
		s.answer(w, r, &items[0])
	}
}

func nodeMetrics(n *NodeRate) metricsv1beta1.NodeMetrics {
	return metricsv1beta1.NodeMetrics{
		ObjectMeta: metav1.ObjectMeta{Name: n.Node, Labels: n.Labels, CreationTimestamp: metav1.NewTime(n.Time)},
		Timestamp:  metav1.NewTime(n.Time),
		Window:     metav1.Duration{Duration: n.Window.Round(time.Millisecond)},
		Usage:      n.Rate.usage(),
	}
}

func podMetrics(p *PodRate) metricsv1beta1.PodMetrics {
	out := metricsv1beta1.PodMetrics{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.Name, Namespace: p.Namespace, Labels: p.Labels,
			CreationTimestamp: metav1.NewTime(p.Rates[0].Time),
		},
		Timestamp: metav1.NewTime(p.Rates[0].Time),
		Window:    metav1.Duration{Duration: p.Rates[0].Window.Round(time.Millisecond)},
	}
	for i, c := range p.Containers {
		out.Containers = append(out.Containers, metricsv1beta1.ContainerMetrics{Name: c.Name, Usage: p.Rates[i].usage()})
	}
	return out
}

func (r Rate) usage() corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewScaledQuantity(int64(r.NanoCores), resource.Nano),
		corev1.ResourceMemory: *resource.NewQuantity(int64(r.WorkingSetBytes), resource.BinarySI),
	}
}

// answer writes an object, as a table where that is asked for.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, obj runtime.Object) {
	if wantsTable(r) {
		s.write(w, r, http.StatusOK, schema.GroupVersion{Group: "meta.k8s.io", Version: "v1"}, table(obj))
		return
	}
	s.write(w, r, http.StatusOK, metricsv1beta1.SchemeGroupVersion, obj)
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, ok := err.(apierrors.APIStatus)
	if !ok {
		status = apierrors.NewInternalError(err)
	}
	st := status.Status()
	s.write(w, r, int(st.Code), schema.GroupVersion{Version: "v1"}, &st)
}

// write encodes in the first media type of Accept that is known, JSON otherwise.
func (s *Server) write(w http.ResponseWriter, r *http.Request, code int, gv schema.GroupVersion, obj runtime.Object) {
	info := s.negotiate(r)
	data, err := runtime.Encode(s.codecs.EncoderForVersion(info.Serializer, gv), obj)
	if err != nil {
		s.log.Error("metrics not encoded", "err", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", info.MediaType)
	w.WriteHeader(code)
	w.Write(data)
}

func (s *Server) negotiate(r *http.Request) runtime.SerializerInfo {
	infos := s.codecs.SupportedMediaTypes()
	for accept := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
		media, params, err := mime.ParseMediaType(strings.TrimSpace(accept))
		if err != nil {
			continue
		}
		if params["as"] != "" && media == runtime.ContentTypeProtobuf {
			continue // tables are not written in it here
		}
		if info, ok := runtime.SerializerInfoForMediaType(infos, media); ok {
			return info
		}
	}
	info, _ := runtime.SerializerInfoForMediaType(infos, runtime.ContentTypeJSON)
	return info
}

func wantsTable(r *http.Request) bool {
	for accept := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
		_, params, err := mime.ParseMediaType(strings.TrimSpace(accept))
		if err != nil {
			continue
		}
		if params["as"] == "Table" && params["g"] == "meta.k8s.io" {
			return true
		}
		return false // the first choice decides
	}
	return false
}

// table is what kubectl get prints.
func table(obj runtime.Object) *metav1.Table {
	t := &metav1.Table{
		ColumnDefinitions: []metav1.TableColumnDefinition{
			{Name: "Name", Type: "string", Format: "name", Description: "Name of the resource"},
			{Name: "CPU", Type: "string", Description: "CPU use in cores"},
			{Name: "Memory", Type: "string", Description: "Memory that cannot be given back at once"},
			{Name: "Window", Type: "string", Description: "The time that CPU use is the mean of"},
		},
		Rows: []metav1.TableRow{},
	}
	row := func(m metav1.ObjectMeta, window metav1.Duration, usage ...corev1.ResourceList) {
		var cpu, memory resource.Quantity
		for _, u := range usage {
			cpu.Add(u[corev1.ResourceCPU])
			memory.Add(u[corev1.ResourceMemory])
		}
		t.Rows = append(t.Rows, metav1.TableRow{
			Cells: []any{m.Name, cpu.String(), memory.String(), window.Duration.String()},
			Object: runtime.RawExtension{Object: &metav1.PartialObjectMetadata{
				TypeMeta:   metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: "meta.k8s.io/v1"},
				ObjectMeta: m,
			}},
		})
	}
	pod := func(p *metricsv1beta1.PodMetrics) {
		var usage []corev1.ResourceList
		for _, c := range p.Containers {
			usage = append(usage, c.Usage)
		}
		row(p.ObjectMeta, p.Window, usage...)
	}
	switch o := obj.(type) {
	case *metricsv1beta1.NodeMetrics:
		row(o.ObjectMeta, o.Window, o.Usage)
	case *metricsv1beta1.NodeMetricsList:
		for i := range o.Items {
			row(o.Items[i].ObjectMeta, o.Items[i].Window, o.Items[i].Usage)
		}
	case *metricsv1beta1.PodMetrics:
		pod(o)
	case *metricsv1beta1.PodMetricsList:
		for i := range o.Items {
			pod(&o.Items[i])
		}
	}
	return t
}
