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
	Log    *slog.Logger
	// Now and After are the clock, the real one if nil.
	Now   func() time.Time
	After func(time.Duration) <-chan time.Time
}

// Server is the http.Handler of everything below Path. Requests have been authorized.
type Server struct {
	mux    *http.ServeMux
	meter  *Meter
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

func (s *Server) listNodes(w http.ResponseWriter, r *http.Request) {
	sel, err := selectionOf(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	reading, err := s.meter.Read(r.Context())
	if err != nil {
		s.fail(w, r, apierrors.NewInternalError(err))
		return
	}
	list := &metricsv1beta1.NodeMetricsList{Items: []metricsv1beta1.NodeMetrics{}}
	for i := range reading.Nodes {
		if n := &reading.Nodes[i]; sel.matches("", n.Node, n.Labels) {
			list.Items = append(list.Items, nodeMetrics(n))
		}
	}
	sort.Slice(list.Items, func(i, j int) bool { return list.Items[i].Name < list.Items[j].Name })
	s.answer(w, r, list)
}

func (s *Server) getNode(w http.ResponseWriter, r *http.Request) {
	reading, err := s.meter.Read(r.Context())
	if err != nil {
		s.fail(w, r, apierrors.NewInternalError(err))
		return
	}
	name := r.PathValue("name")
	for i := range reading.Nodes {
		if n := &reading.Nodes[i]; n.Node == name {
			m := nodeMetrics(n)
			s.answer(w, r, &m)
			return
		}
	}
	s.fail(w, r, apierrors.NewNotFound(schema.GroupResource{Group: Group, Resource: "nodemetrics"}, name))
}

func (s *Server) listPods(w http.ResponseWriter, r *http.Request) {
	sel, err := selectionOf(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	reading, err := s.meter.Read(r.Context())
	if err != nil {
		s.fail(w, r, apierrors.NewInternalError(err))
		return
	}
	namespace := r.PathValue("namespace")
	list := &metricsv1beta1.PodMetricsList{Items: []metricsv1beta1.PodMetrics{}}
	for i := range reading.Nodes {
		for j := range reading.Nodes[i].Pods {
			p := &reading.Nodes[i].Pods[j]
			if len(p.Rates) > 0 && (namespace == "" || p.Namespace == namespace) && sel.matches(p.Namespace, p.Name, p.Labels) {
				list.Items = append(list.Items, podMetrics(p))
			}
		}
	}
	sort.Slice(list.Items, func(i, j int) bool {
		a, b := &list.Items[i], &list.Items[j]
		if a.Namespace != b.Namespace {
			return a.Namespace < b.Namespace
		}
		return a.Name < b.Name
	})
	s.answer(w, r, list)
}

func (s *Server) getPod(w http.ResponseWriter, r *http.Request) {
	reading, err := s.meter.Read(r.Context())
	if err != nil {
		s.fail(w, r, apierrors.NewInternalError(err))
		return
	}
	namespace, name := r.PathValue("namespace"), r.PathValue("name")
	for i := range reading.Nodes {
		for j := range reading.Nodes[i].Pods {
			p := &reading.Nodes[i].Pods[j]
			if p.Namespace == namespace && p.Name == name && len(p.Rates) > 0 {
				m := podMetrics(p)
				s.answer(w, r, &m)
				return
			}
		}
	}
	s.fail(w, r, apierrors.NewNotFound(schema.GroupResource{Group: Group, Resource: "podmetrics"}, namespace+"/"+name))
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
