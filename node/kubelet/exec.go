package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"coracle.dev/coracle/container"
)

// exec runs a command in a container over an upgraded connection. A client that goes away
// ends a command on a terminal, as hanging up does; one without a terminal sees the end of its
// input and runs on, as upstream has it.
func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	o, err := wantedStreams(r)
	if err != nil {
		fail(w, err)
		return
	}
	t, err := s.running(r)
	if err != nil {
		fail(w, err)
		return
	}
	command := r.URL.Query()["command"]
	if len(command) == 0 {
		fail(w, &httpError{http.StatusBadRequest, "you must specify a command"})
		return
	}
	h := s.hijacker(w)
	ses, err := s.openSession(h, r, o)
	if err != nil {
		s.cfg.Log.Debug("exec not upgraded", "pod", t.pod.Name, "err", err)
		return
	}
	defer h.release()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if o.tty {
		ctx = closing(ctx, ses.gone)
	}
	exit, err := s.cfg.Runtime.Exec(ctx, t.id, container.ExecConfig{Args: command, TTY: o.tty}, ses.streams(ctx))
	ses.finish(execStatus(command, exit, err))
}

// closing gives a context that ends when a channel is closed, or with its parent.
func closing(parent context.Context, c <-chan struct{}) context.Context {
	ctx, cancel := context.WithCancel(parent)
	go func() {
		defer cancel()
		select {
		case <-c:
		case <-parent.Done():
		}
	}()
	return ctx
}

// execStatus words the end of a command as upstream does; kubectl takes the exit code from the
// cause.
func execStatus(command []string, exit container.ExitStatus, err error) *metav1.Status {
	switch {
	case err != nil:
		return internalError("error executing command in container: " + execFailure(err))
	case exit.Code != 0:
		return &metav1.Status{
			Status: metav1.StatusFailure,
			Reason: remotecommand.NonZeroExitCodeReason,
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{
				Type:    remotecommand.ExitCodeCauseType,
				Message: strconv.Itoa(exit.Code),
			}}},
			Message: fmt.Sprintf("command terminated with non-zero exit code: error executing command %v, exit code %d", command, exit.Code),
		}
	}
	return &metav1.Status{Status: metav1.StatusSuccess}
}

func execFailure(err error) string {
	var start *container.StartError
	if errors.As(err, &start) {
		const cause = "unable to start container process: "
		return "failed to exec in container: OCI runtime exec failed: exec failed: " + cause + strings.TrimPrefix(start.Message, cause)
	}
	return err.Error()
}

func internalError(msg string) *metav1.Status {
	return &metav1.Status{
		Status:  metav1.StatusFailure,
		Reason:  metav1.StatusReasonInternalError,
		Message: "Internal error occurred: " + msg,
		Code:    http.StatusInternalServerError,
	}
}

// attach connects to the first process of a container.
func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	o, err := wantedStreams(r)
	if err != nil {
		fail(w, err)
		return
	}
	t, err := s.running(r)
	if err != nil {
		fail(w, err)
		return
	}
	st, err := s.cfg.Runtime.Container(t.id)
	if err != nil {
		fail(w, err)
		return
	}
	o.tty = o.tty && st.Config.TTY // whether there is a terminal is the container's matter
	h := s.hijacker(w)
	ses, err := s.openSession(h, r, o)
	if err != nil {
		s.cfg.Log.Debug("attach not upgraded", "pod", t.pod.Name, "err", err)
		return
	}
	defer h.release()
	ctx, cancel := context.WithCancel(closing(r.Context(), ses.gone))
	defer cancel()
	err = s.cfg.Runtime.Attach(ctx, t.id, ses.streams(ctx))
	if err != nil && ctx.Err() == nil {
		ses.finish(internalError("error attaching to container: " + err.Error()))
		return
	}
	ses.finish(&metav1.Status{Status: metav1.StatusSuccess})
}

// maxRunOutput bounds what /run keeps of a command's output.
const maxRunOutput = 16 << 20

// run runs a command and answers with its output, without an upgrade.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	t, err := s.running(r)
	if err != nil {
		fail(w, err)
		return
	}
	command := r.URL.Query()["command"]
	if cmd := r.URL.Query().Get("cmd"); len(command) == 0 && cmd != "" {
		command = strings.Split(cmd, " ")
	}
	if len(command) == 0 {
		fail(w, &httpError{http.StatusBadRequest, "you must specify a command"})
		return
	}
	out := &limitedBuffer{limit: maxRunOutput}
	exit, err := s.cfg.Runtime.Exec(r.Context(), t.id, container.ExecConfig{Args: command},
		container.Streams{Stdout: out, Stderr: out})
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("command '%s' exited with %d: %s", strings.Join(command, " "), exit.Code, out.data)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write(out.data)
}

// limitedBuffer keeps the first bytes that are written to it. Stdout and stderr write to it at once.
type limitedBuffer struct {
	mu    sync.Mutex
	limit int
	data  []byte
}

var _ io.Writer = (*limitedBuffer)(nil)

// Write never fails.
func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p[:min(len(p), b.limit-len(b.data))]...)
	return len(p), nil
}
