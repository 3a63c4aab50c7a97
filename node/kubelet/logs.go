package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"coracle.dev/coracle/container"
	"coracle.dev/coracle/container/logfile"
)

// logOptions are those of corev1.PodLogOptions.
type logOptions struct {
	follow, previous, timestamps bool
	since                        time.Time
	// tail is how many lines from the end, -1 for all.
	tail int64
	// limit in bytes, -1 for none.
	limit          int64
	stdout, stderr bool
}

// parseLogOptions reads the query, in the words of upstream's validation.
func parseLogOptions(q url.Values, now time.Time) (logOptions, error) {
	o := logOptions{tail: -1, limit: -1, stdout: true, stderr: true}
	for name, to := range map[string]*bool{"follow": &o.follow, "previous": &o.previous, "timestamps": &o.timestamps} {
		if v := q.Get(name); v != "" {
			b, err := strconv.ParseBool(v)
			if err != nil {
				return o, invalid("%s: Invalid value: %q: must be a boolean", name, v)
			}
			*to = b
		}
	}
	number := func(name string, min int64, text string) (int64, bool, error) {
		v := q.Get(name)
		if v == "" {
			return 0, false, nil
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < min {
			return 0, false, invalid("%s: Invalid value: %q: %s", name, v, text)
		}
		return n, true, nil
	}
	if n, ok, err := number("tailLines", 0, "must be greater than or equal to 0"); err != nil {
		return o, err
	} else if ok {
		o.tail = n
	}
	if n, ok, err := number("limitBytes", 1, "must be greater than 0"); err != nil {
		return o, err
	} else if ok {
		o.limit = n
	}
	seconds, haveSeconds, err := number("sinceSeconds", 1, "must be greater than 0")
	if err != nil {
		return o, err
	}
	if haveSeconds {
		o.since = now.Add(-time.Duration(seconds) * time.Second)
	}
	if v := q.Get("sinceTime"); v != "" {
		if haveSeconds {
			return o, invalid("at most one of `sinceTime` or `sinceSeconds` may be specified")
		}
		if o.since, err = time.Parse(time.RFC3339, v); err != nil {
			return o, invalid("sinceTime: Invalid value: %q: must be a time", v)
		}
	}
	switch v := q.Get("stream"); v {
	case "", corev1.LogStreamAll:
	case corev1.LogStreamStdout:
		o.stderr = false
	case corev1.LogStreamStderr:
		o.stdout = false
	default:
		return o, invalid("stream: Unsupported value: %q: supported values: %q, %q, %q", v,
			corev1.LogStreamAll, corev1.LogStreamStderr, corev1.LogStreamStdout)
	}
	if (!o.stdout || !o.stderr) && o.tail >= 0 {
		return o, invalid("tailLines: Forbidden: `tailLines` and specific `stream` are mutually exclusive for now")
	}
	return o, nil
}

func invalid(format string, args ...any) error {
	return &httpError{http.StatusUnprocessableEntity, fmt.Sprintf(format, args...)}
}

// containerLogs answers with what a container wrote.
func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) {
	o, err := parseLogOptions(r.URL.Query(), s.cfg.Now())
	if err != nil {
		fail(w, err)
		return
	}
	name, podName := r.PathValue("container"), r.PathValue("pod")
	pod := s.cfg.Pod(r.PathValue("namespace"), podName)
	if pod == nil {
		fail(w, &httpError{http.StatusNotFound, fmt.Sprintf("pod %q does not exist", podName)})
		return
	}
	if !hasContainer(pod, name) {
		fail(w, &httpError{http.StatusNotFound, fmt.Sprintf("container %q not found in pod %q", name, podName)})
		return
	}
	id := s.cfg.Container(pod.UID, name, o.previous)
	var st container.ContainerStatus
	if id != "" {
		st, err = s.cfg.Runtime.Container(id)
	}
	if id == "" || err != nil || st.LogPath == "" {
		fail(w, &httpError{http.StatusBadRequest, noLogs(pod, name, o.previous)})
		return
	}
	out := &logWriter{w: w, o: o, left: o.limit}
	err = s.copyLogs(r.Context(), id, st.LogPath, out)
	switch {
	case err == nil:
		out.flush()
	case out.written == 0 && r.Context().Err() == nil:
		fail(w, &httpError{http.StatusBadRequest, err.Error()})
	default:
		out.flush() // too late to tell
		s.cfg.Log.Debug("logs ended early", "pod", podName, "container", name, "err", err)
	}
}

// hasContainer looks among all containers of a pod.
func hasContainer(pod *corev1.Pod, name string) bool {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return true
			}
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return true
		}
	}
	return false
}

// noLogs says why there are none, from the container's status, in upstream's words.
func noLogs(pod *corev1.Pod, name string, previous bool) string {
	if previous {
		return fmt.Sprintf("previous terminated container %q in pod %q not found", name, pod.Name)
	}
	for _, list := range [][]corev1.ContainerStatus{
		pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses,
	} {
		for i := range list {
			if list[i].Name != name {
				continue
			}
			switch waiting := list[i].State.Waiting; {
			case waiting == nil:
				return fmt.Sprintf("container %q in pod %q is terminated", name, pod.Name)
			case waiting.Reason == "ErrImagePull":
				return fmt.Sprintf("container %q in pod %q is waiting to start: image can't be pulled", name, pod.Name)
			case waiting.Reason == "ImagePullBackOff":
				return fmt.Sprintf("container %q in pod %q is waiting to start: trying and failing to pull image", name, pod.Name)
			default:
				return fmt.Sprintf("container %q in pod %q is waiting to start: %s", name, pod.Name, waiting.Reason)
			}
		}
	}
	return fmt.Sprintf("container %q in pod %q is not available", name, pod.Name)
}

// copyLogs writes the present log file of a container (rotated ones are not shown, as upstream documents
// for kubectl logs) and, when following, what comes after it through any
// number of rotations, until the container has ended and all is read.
func (s *Server) copyLogs(ctx context.Context, id, path string, out *logWriter) error {
	src := logSource{ended: make(chan struct{})}
	if out.o.follow {
		// Subscribed before the first look, so that nothing is missed.
		sub, err := s.files.Watch(filepath.Dir(path))
		if err != nil {
			return err
		}
		defer sub.Close()
		src.changed = sub.C
		defer s.onEnd(id, src.ended)()
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && out.o.follow {
		if file, err = src.waitFor(ctx, path); file == nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	defer func() { file.Close() }()
	at := int64(0)
	if out.o.tail >= 0 {
		if at, err = tailStart(file, out.o.tail); err != nil {
			return err
		}
	}
	if !out.o.follow {
		return copyPresent(file, at, out)
	}
	if _, err := file.Seek(at, io.SeekStart); err != nil {
		return err
	}
	reader := newRecordReader(file)
	for {
		ended := src.hasEnded() // asked before reading: what is written up to the end is then seen
		done, err := reader.drain(out)
		if done || err != nil {
			return err
		}
		next, err := nextFile(path, file)
		if err != nil {
			return err
		}
		if next != nil {
			// Nothing is added to the old file any more, but something may have been since it was drained.
			if done, err := reader.drain(out); done || err != nil {
				next.Close()
				return err
			}
			file.Close()
			file = next
			reader.reset(file)
			continue
		}
		if ended {
			return reader.rest(out)
		}
		out.flush()
		select {
		case <-src.changed:
		case <-src.ended:
		case <-ctx.Done():
			return nil
		}
	}
}

// copyPresent writes what a file holds now from a position on, and nothing that is added meanwhile.
func copyPresent(file *os.File, at int64, out *logWriter) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	reader := newRecordReader(io.NewSectionReader(file, at, info.Size()-at))
	if done, err := reader.drain(out); done || err != nil {
		return err
	}
	return reader.rest(out)
}

// logSource tells when there may be more.
type logSource struct {
	changed <-chan struct{}
	ended   chan struct{}
}

func (s *logSource) hasEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// waitFor opens a file as soon as it is there. No file and no error: the container ended without, or
// the client is gone.
func (s *logSource) waitFor(ctx context.Context, path string) (*os.File, error) {
	for {
		ended := s.hasEnded()
		file, err := os.Open(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return file, err
		}
		if ended {
			return nil, nil
		}
		select {
		case <-s.changed:
		case <-s.ended:
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// onEnd closes ended when a container no longer runs, now or later. The function it returns ends the
// subscription.
func (s *Server) onEnd(id string, ended chan struct{}) func() {
	over := func() bool {
		st, err := s.cfg.Runtime.Container(id)
		return err != nil || st.State == container.StateExited
	}
	exits := make(chan struct{}, 1)
	cancel := s.cfg.Runtime.Subscribe(func(ev container.Event) {
		if ev.ContainerID == id && (ev.Type == container.EventContainerExited || ev.Type == container.EventContainerRemoved) {
			select {
			case exits <- struct{}{}:
			default:
			}
		}
	})
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for !over() {
			select {
			case <-exits:
			case <-stop:
				return
			}
		}
		close(ended)
	}()
	return func() {
		cancel()
		close(stop)
		<-done
	}
}

// logWriter applies the options to records.
type logWriter struct {
	w    http.ResponseWriter
	o    logOptions
	left int64 // bytes, -1 for no limit
	// written counts the bytes, pending those since the last flush.
	written, pending int64
	// inside tells per stream whether the last record written was partial.
	inside [2]bool
	line   []byte // reused
}

// write writes one record. Done tells that the limit is reached.
func (l *logWriter) write(r logfile.Line) (done bool, err error) {
	stream := 0
	if r.Stream == logfile.Stderr {
		stream = 1
	}
	if (r.Stream == logfile.Stderr && !l.o.stderr) || (r.Stream == logfile.Stdout && !l.o.stdout) || r.Time.Before(l.o.since) {
		return false, nil
	}
	l.line = l.line[:0]
	if l.o.timestamps && !l.inside[stream] {
		l.line = r.Time.AppendFormat(l.line, logfile.TimeFormat)
		l.line = append(l.line, ' ')
	}
	l.line = append(l.line, r.Text...)
	if !r.Partial {
		l.line = append(l.line, '\n')
	}
	l.inside[stream] = r.Partial
	if l.left >= 0 && int64(len(l.line)) > l.left {
		l.line = l.line[:l.left]
	}
	if l.written == 0 {
		l.w.Header().Set("Content-Type", "text/plain")
	}
	n, err := l.w.Write(l.line)
	l.written += int64(n)
	l.pending += int64(n)
	if l.left >= 0 {
		l.left -= int64(n)
		done = l.left == 0
	}
	return done, err
}

// flush sends what was written, also the header if nothing was.
func (l *logWriter) flush() {
	if l.written == 0 {
		l.w.Header().Set("Content-Type", "text/plain")
	}
	if l.pending > 0 || l.written == 0 {
		http.NewResponseController(l.w).Flush() // a writer that cannot sends at its end
		l.pending = 0
	}
}
