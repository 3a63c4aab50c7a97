package apiserver

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/apiserver/admission"
	"coracle.dev/coracle/apiserver/proxy"
)

// connectable refuses what no stream can do, and runs admission.
func (c *call) connectable() error {
	if c.query.Has("dryRun") {
		return apierrors.NewBadRequest("dryRun is not supported")
	}
	req := &admission.Request{
		Operation: admission.Connect, Kind: c.kind, Version: c.version.Name, Subresource: c.info.Subresource,
		Namespace: c.target().Namespace, Name: c.info.Name, User: c.user, Options: c.connectOptions(),
		Snapshot: c.cfg.Store.Snapshot(), Now: c.cfg.Now(), Warn: c.warn, Annotate: c.target().Annotate, AnnotateBodies: c.target().AnnotateBodies,
	}
	if err := c.chain.Admission.Mutate(c.r.Context(), req); err != nil {
		return err
	}
	return c.chain.Admission.Validate(c.r.Context(), req)
}

// connectOptions are the options of a stream or proxy as admission is shown them in place of an object.
func (c *call) connectOptions() runtime.Object {
	path := c.info.Rest
	if path == "" {
		path = c.query.Get("path")
	}
	switch c.kind.Name() + "/" + c.info.Subresource {
	case "pods/exec":
		return &corev1.PodExecOptions{
			Stdin: c.flag("stdin"), Stdout: c.flag("stdout"), Stderr: c.flag("stderr"), TTY: c.flag("tty"),
			Container: c.query.Get("container"), Command: c.query["command"],
		}
	case "pods/attach":
		return &corev1.PodAttachOptions{
			Stdin: c.flag("stdin"), Stdout: c.flag("stdout"), Stderr: c.flag("stderr"), TTY: c.flag("tty"), Container: c.query.Get("container"),
		}
	case "pods/portforward":
		o := &corev1.PodPortForwardOptions{}
		for _, list := range c.query["ports"] {
			for port := range strings.SplitSeq(list, ",") {
				// What is no port is refused when the stream is opened.
				if n, err := strconv.ParseUint(port, 10, 16); err == nil {
					o.Ports = append(o.Ports, int32(n))
				}
			}
		}
		return o
	case "pods/proxy":
		return &corev1.PodProxyOptions{Path: path}
	case "services/proxy":
		return &corev1.ServiceProxyOptions{Path: path}
	case "nodes/proxy":
		return &corev1.NodeProxyOptions{Path: path}
	}
	return nil
}

// proxy answers the proxy subresources of pods, services and nodes.
func (c *call) proxy() error {
	if err := c.connectable(); err != nil {
		return err
	}
	snap := c.cfg.Store.Snapshot()
	rest := c.info.Rest
	if p := c.query.Get("path"); rest == "" && p != "" {
		rest = "/" + strings.TrimPrefix(p, "/")
	}
	var to *url.URL
	var err error
	switch c.kind.Name() {
	case "pods":
		to, err = proxy.Pod(snap, c.info.Namespace, c.info.Name)
	case "services":
		to, err = proxy.Service(snap, c.info.Namespace, c.info.Name)
	case "nodes":
		n, ok := proxy.ParseName(c.info.Name)
		if !ok {
			return apierrors.NewBadRequest(fmt.Sprintf("invalid node request %q", c.info.Name))
		}
		return c.node(n.Name, rest, c.r.URL.RawQuery, c.w)
	default:
		return apierrors.NewMethodNotSupported(c.kind.GroupResource(), c.info.Verb)
	}
	if err != nil {
		return err
	}
	proxy.Forward(c.w, c.r, to, rest, proxy.Dial(c.cfg.Dial), func(err error) {
		c.fail(c.w, c.r, apierrors.NewServiceUnavailable(fmt.Sprintf("error trying to reach service: %v", err)))
	})
	return nil
}

// node hands the request to the kubelet API of a node, under another path.
func (c *call) node(node, path, query string, w http.ResponseWriter) error {
	if c.cfg.Nodes == nil {
		return apierrors.NewServiceUnavailable(errNoNode.Error())
	}
	h, err := c.cfg.Nodes(node)
	if err != nil {
		return apierrors.NewServiceUnavailable(fmt.Sprintf("unable to reach node %q: %v", node, err))
	}
	r := c.r.Clone(c.r.Context())
	r.Header.Del("Authorization")
	if path == "" {
		path = "/"
	}
	r.URL = &url.URL{Path: path, RawQuery: query}
	r.RequestURI = r.URL.RequestURI()
	h.ServeHTTP(w, r)
	return nil
}

// pod reads the pod that a stream is about.
func (c *call) pod() (*corev1.Pod, error) {
	e, err := c.current()
	if err != nil {
		return nil, err
	}
	return e.Object.(*corev1.Pod), nil
}

// container checks the container that was asked for, or picks the only one.
func container(pod *corev1.Pod, name string) (string, error) {
	if name == "" {
		return onlyContainer(pod)
	}
	known := slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == name }) ||
		slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == name }) ||
		slices.ContainsFunc(pod.Spec.EphemeralContainers, func(c corev1.EphemeralContainer) bool { return c.Name == name })
	if !known {
		return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, pod.Name))
	}
	return name, nil
}

func onlyContainer(pod *corev1.Pod) (string, error) {
	switch len(pod.Spec.Containers) {
	case 0:
		return "", apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s", pod.Name))
	case 1:
		return pod.Spec.Containers[0].Name, nil
	}
	text := fmt.Sprintf("a container name must be specified for pod %s, choose one of: [%s]", pod.Name, names(pod.Spec.Containers))
	if len(pod.Spec.InitContainers) > 0 {
		text += fmt.Sprintf(" or one of the init containers: [%s]", names(pod.Spec.InitContainers))
	}
	return "", apierrors.NewBadRequest(text)
}

func names(containers []corev1.Container) string {
	out := make([]string, len(containers))
	for i := range containers {
		out[i] = containers[i].Name
	}
	return strings.Join(out, " ")
}

// flag is a boolean query parameter.
func (c *call) flag(name string) bool {
	v := c.query.Get(name)
	return c.query.Has(name) && v != "0" && !strings.EqualFold(v, "false")
}

// podStream answers exec and attach: the connection is handed to the node, which upgrades it.
func (c *call) podStream() error {
	if err := c.connectable(); err != nil {
		return err
	}
	pod, err := c.pod()
	if err != nil {
		return err
	}
	name, err := container(pod, c.query.Get("container"))
	if err != nil {
		return err
	}
	if pod.Spec.NodeName == "" {
		return apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	q := url.Values{}
	for param, kubelet := range map[string]string{"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty"} {
		if c.flag(param) {
			q.Set(kubelet, "1")
		}
	}
	if c.info.Subresource == "exec" {
		q["command"] = c.query["command"]
	}
	path := "/" + c.info.Subresource + "/" + pod.Namespace + "/" + pod.Name + "/" + name
	return c.node(pod.Spec.NodeName, path, q.Encode(), c.w)
}

// portForward answers portforward in the same way.
func (c *call) portForward() error {
	if err := c.connectable(); err != nil {
		return err
	}
	pod, err := c.pod()
	if err != nil {
		return err
	}
	if pod.Spec.NodeName == "" {
		return apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	q := url.Values{}
	for _, list := range c.query["ports"] {
		for port := range strings.SplitSeq(list, ",") {
			if _, err := strconv.ParseUint(port, 10, 16); err != nil {
				return apierrors.NewBadRequest(fmt.Sprintf("invalid port %q", port))
			}
			q.Add("port", port)
		}
	}
	return c.node(pod.Spec.NodeName, "/portForward/"+pod.Namespace+"/"+pod.Name, q.Encode(), c.w)
}

// podLog answers GET of pods/x/log.
func (c *call) podLog() error {
	pod, err := c.pod()
	if err != nil {
		return err
	}
	q, err := c.logQuery()
	if err != nil {
		return err
	}
	name, err := container(pod, c.query.Get("container"))
	if err != nil {
		return err
	}
	if pod.Spec.NodeName == "" {
		c.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	path := "/containerLogs/" + pod.Namespace + "/" + pod.Name + "/" + name
	if strings.EqualFold(c.r.Header.Get("Upgrade"), "websocket") {
		return c.logOverSocket(pod, path, q.Encode())
	}
	w := &logWriter{ResponseWriter: c.w}
	if err := c.node(pod.Spec.NodeName, path, q.Encode(), w); err != nil {
		return err
	}
	return w.result(pod)
}

// logQuery validates PodLogOptions and translates them for the kubelet.
func (c *call) logQuery() (url.Values, error) {
	q := url.Values{}
	for _, name := range []string{"follow", "previous", "timestamps", "insecureSkipTLSVerifyBackend"} {
		if c.flag(name) && name != "insecureSkipTLSVerifyBackend" {
			q.Set(name, "true")
		}
	}
	var errs field.ErrorList
	for _, p := range []struct {
		name string
		min  int64
		why  string
	}{
		{"tailLines", 0, "must be greater than or equal to 0"},
		{"limitBytes", 1, "must be greater than 0"},
		{"sinceSeconds", 1, "must be greater than 0"},
	} {
		v := c.query.Get(p.name)
		if v == "" {
			continue
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		if n < p.min {
			errs = append(errs, field.Invalid(field.NewPath(p.name), n, p.why))
		}
		q.Set(p.name, v)
	}
	if v := c.query.Get("sinceTime"); v != "" {
		t, err := time.Parse(time.RFC3339, v)
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		if q.Has("sinceSeconds") {
			errs = append(errs, field.Forbidden(field.NewPath(""), "at most one of `sinceTime` or `sinceSeconds` may be specified"))
		}
		q.Set("sinceTime", t.Format(time.RFC3339))
	}
	if v := c.query.Get("stream"); v != "" {
		if v != corev1.LogStreamStdout && v != corev1.LogStreamStderr && v != corev1.LogStreamAll {
			errs = append(errs, field.NotSupported(field.NewPath("stream"), v, []string{corev1.LogStreamAll, corev1.LogStreamStderr, corev1.LogStreamStdout}))
		}
		if v != corev1.LogStreamAll && q.Has("tailLines") {
			errs = append(errs, field.Forbidden(field.NewPath(""), "`tailLines` and specific `stream` are mutually exclusive for now"))
		}
		q.Set("stream", v)
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Kind: "PodLogOptions"}, c.info.Name, errs)
	}
	return q, nil
}

// logWriter passes a log on, and holds back what the node says instead when it has none, so
// that it can be told as a Status.
type logWriter struct {
	http.ResponseWriter
	code  int
	began bool
	text  bytes.Buffer
}

// maxNodeError is how much of a node's error text is told.
const maxNodeError = 2048

// WriteHeader implements http.ResponseWriter.
func (w *logWriter) WriteHeader(code int) {
	if w.code != 0 {
		return
	}
	w.code = code
	if w.failed() {
		return
	}
	w.began = true
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "text/plain")
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *logWriter) failed() bool {
	return w.code < http.StatusOK || w.code > http.StatusPartialContent
}

// Write implements http.ResponseWriter.
func (w *logWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.failed() {
		w.text.Write(p[:min(len(p), maxNodeError-w.text.Len())])
		return len(p), nil
	}
	return w.ResponseWriter.Write(p)
}

// Flush implements http.Flusher, so that a followed log arrives as it is written.
func (w *logWriter) Flush() {
	if w.code == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if f, ok := w.ResponseWriter.(http.Flusher); ok && w.began {
		f.Flush()
	}
}

// Unwrap lets http.ResponseController reach the connection.
func (w *logWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// result is the error that the node answered with, if it did.
func (w *logWriter) result(pod *corev1.Pod) error {
	if w.code == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !w.failed() {
		return nil
	}
	w.Header().Del("Content-Length")
	text := strings.TrimSpace(w.text.String())
	switch w.code {
	case http.StatusInternalServerError:
		return apierrors.NewInternalError(errors.New(text))
	case http.StatusBadRequest:
		return apierrors.NewBadRequest(text)
	}
	return apierrors.NewGenericServerResponse(w.code, "", schema.GroupResource{Resource: "pods/log"}, pod.Name, text, 0, false)
}
