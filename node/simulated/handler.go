package simulated

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/client"
)

// Logs is a pod annotation: what the pod's containers are said to have written. With a dot and the name of a container behind it
// ("simulated.coracle.dev/logs.app") it is for that container. Without it some lines are made up that tell the container's life.
const Logs = "simulated.coracle.dev/logs"

// Handler answers the kubelet API of one of the agent's nodes, nil if the name is not one. Logs can be read and followed;
// everything that would need a process is refused.
func (a *Agent) Handler(node string) http.Handler {
	if a.nodes[node] == nil {
		return nil
	}
	h := &nodeHandler{a: a, node: node}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	mux.HandleFunc("GET /pods", h.pods)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", h.logs)
	for path, what := range map[string]string{"/exec/": "no command can be run in them", "/run/": "no command can be run in them",
		"/attach/": "there is nothing to attach to", "/portForward/": "nothing listens at their ports"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { h.refuse(w, what) })
	}
	return mux
}

type nodeHandler struct {
	a    *Agent
	node string
}

// refuse answers with a Status, which clients show as it is.
func (h *nodeHandler) refuse(w http.ResponseWriter, what string) {
	const code = http.StatusBadRequest
	status := metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: code,
		Reason:  metav1.StatusReasonBadRequest,
		Message: fmt.Sprintf("node %s is simulated: its containers are only reported as running, %s", h.node, what)}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(status)
}

func (h *nodeHandler) pods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	for pod := range client.Pods.Index(h.a.cfg.Client.Snapshot(), "node", h.node) {
		list.Items = append(list.Items, *pod)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list)
}

// line is one line of a log.
type line struct {
	at   time.Time
	text string
}

// logs answers as the kubelet does. The API server has checked the query.
func (h *nodeHandler) logs(w http.ResponseWriter, r *http.Request) {
	namespace, name, container := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")
	q := r.URL.Query()
	snap := h.a.cfg.Client.Snapshot()
	pod, ok := client.Pods.Get(snap, namespace, name)
	if !ok || pod.Spec.NodeName != h.node {
		http.Error(w, fmt.Sprintf("pod %q does not exist", name), http.StatusNotFound)
		return
	}
	lines, running, problem := logOf(pod, container, q.Get("previous") == "true")
	if problem != "" {
		http.Error(w, problem, http.StatusBadRequest)
		return
	}
	out := newLogPrinter(w, q, h.a.cfg.Now())
	out.present(lines)
	if q.Get("follow") != "true" || !running {
		return
	}
	out.flush()
	cursor, err := h.a.cfg.Client.Cursor(snap.Revision(), client.Pods.Name)
	if err != nil {
		return // it ends here
	}
	uid, restarted := pod.UID, restartCount(pod, container)
	for {
		events, err := cursor.Next(r.Context())
		if err != nil {
			return
		}
		for _, ev := range events {
			if ev.Entry.Name != name || ev.Entry.Namespace != namespace {
				continue
			}
			now := ev.Entry.Object.(*corev1.Pod)
			if ev.Deleted || now.UID != uid {
				return
			}
			more, running, problem := logOf(now, container, restartCount(now, container) != restarted)
			if problem != "" {
				return
			}
			if len(more) > len(lines) {
				out.follow(more[len(lines):])
				lines = more
			}
			if !running || restartCount(now, container) != restarted {
				return
			}
		}
	}
}

func statusOf(pod *corev1.Pod, container string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == container {
				return &list[i]
			}
		}
	}
	return nil
}

func restartCount(pod *corev1.Pod, container string) int32 {
	if c := statusOf(pod, container); c != nil {
		return c.RestartCount
	}
	return 0
}

// logOf is the log of a container: of its present run, or of the one before. running tells that more may come; problem says why there
// is none, in the words of the kubelet.
func logOf(pod *corev1.Pod, container string, previous bool) (lines []line, running bool, problem string) {
	c := statusOf(pod, container)
	var state corev1.ContainerState
	if c != nil {
		switch state = c.State; {
		case previous:
			state = c.LastTerminationState
		case state.Waiting != nil && c.LastTerminationState.Terminated != nil:
			state = c.LastTerminationState // what it wrote last, while it waits for its restart
		}
	}
	switch {
	case previous && state.Terminated == nil:
		return nil, false, fmt.Sprintf("previous terminated container %q in pod %q not found", container, pod.Name)
	case c == nil:
		return nil, false, fmt.Sprintf("container %q in pod %q is waiting to start: ContainerCreating", container, pod.Name)
	case state.Running == nil && state.Terminated == nil:
		reason := creating
		if state.Waiting != nil {
			reason = state.Waiting.Reason
		}
		switch reason {
		case "ErrImagePull":
			reason = "image can't be pulled"
		case "ImagePullBackOff":
			reason = "trying and failing to pull image"
		}
		return nil, false, fmt.Sprintf("container %q in pod %q is waiting to start: %s", container, pod.Name, reason)
	}
	started := metav1.Time{}
	if state.Running != nil {
		started = state.Running.StartedAt
	} else {
		started = state.Terminated.StartedAt
	}
	text, given := pod.Annotations[Logs+"."+container]
	if !given {
		text, given = pod.Annotations[Logs]
	}
	if given {
		for t := range strings.Lines(text) {
			lines = append(lines, line{started.Time, strings.TrimSuffix(t, "\n")})
		}
		return lines, state.Running != nil, ""
	}
	times := c.RestartCount
	if previous && c.State.Waiting == nil {
		times--
	}
	lines = []line{
		{started.Time, fmt.Sprintf("simulated container %s of pod %s/%s starts with image %s", container, pod.Namespace, pod.Name, c.Image)},
		{started.Time, fmt.Sprintf("on node %s with address %s, restart %d", pod.Spec.NodeName, pod.Status.PodIP, times)},
	}
	if t := state.Terminated; t != nil {
		lines = append(lines, line{t.FinishedAt.Time, fmt.Sprintf("ends with exit code %d (%s)", t.ExitCode, t.Reason)})
	}
	return lines, state.Running != nil, ""
}

// logPrinter writes lines as the query asks for.
type logPrinter struct {
	w          http.ResponseWriter
	timestamps bool
	since      time.Time
	tail, left int // -1 for no bound
}

func newLogPrinter(w http.ResponseWriter, q url.Values, now time.Time) *logPrinter {
	number := func(name string) int {
		if n, err := strconv.Atoi(q.Get(name)); err == nil {
			return n
		}
		return -1
	}
	p := &logPrinter{w: w, timestamps: q.Get("timestamps") == "true", tail: number("tailLines"), left: number("limitBytes")}
	if s := number("sinceSeconds"); s >= 0 {
		p.since = now.Add(-time.Duration(s) * time.Second)
	}
	if t, err := time.Parse(time.RFC3339, q.Get("sinceTime")); err == nil {
		p.since = t
	}
	if q.Get("stream") == corev1.LogStreamStderr {
		p.left = 0 // everything is on standard output
	}
	return p
}

func (p *logPrinter) present(lines []line) {
	if p.tail >= 0 {
		lines = lines[max(0, len(lines)-p.tail):]
	}
	for _, l := range lines {
		p.print(l)
	}
}

func (p *logPrinter) follow(lines []line) {
	for _, l := range lines {
		p.print(l)
	}
	p.flush()
}

func (p *logPrinter) print(l line) {
	if l.at.Before(p.since) {
		return
	}
	text := l.text + "\n"
	if p.timestamps {
		text = l.at.UTC().Format(time.RFC3339Nano) + " " + text
	}
	if p.left >= 0 {
		text = text[:min(len(text), p.left)]
		p.left -= len(text)
	}
	_, _ = p.w.Write([]byte(text)) // a reader that has gone is noticed by its context
}

func (p *logPrinter) flush() { _ = http.NewResponseController(p.w).Flush() }
