package backend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Endpoint is a server that a kubeconfig file names: its current cluster is the URL that is asked, its current user who the API server is
// there. Webhooks for tokens and rights are told of in this way. It is safe for concurrent use.
type Endpoint struct {
	url    string
	client *http.Client
	pause  time.Duration // before the second try
}

// Bounds on what is asked of an endpoint, as upstream's webhooks have them.
const (
	endpointTimeout = 30 * time.Second
	endpointTries   = 5
	endpointPause   = 500 * time.Millisecond
	endpointAnswer  = 3 << 20 // bytes
)

// OpenEndpoint reads a kubeconfig file. Timeout bounds one try, 30 s if zero. Nothing is asked yet.
func OpenEndpoint(kubeconfig string, timeout time.Duration) (*Endpoint, error) {
	loaded, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		return nil, err
	}
	if err := clientcmd.ResolveLocalPaths(loaded); err != nil {
		return nil, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	cfg, err := clientcmd.NewDefaultClientConfig(*loaded, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	cfg.Timeout = timeout
	if timeout == 0 {
		cfg.Timeout = endpointTimeout
	}
	c, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	return &Endpoint{url: cfg.Host, client: c, pause: endpointPause}, nil
}

// Close ends the connections that wait for use. Questions under way go on.
func (e *Endpoint) Close() { e.client.CloseIdleConnections() }

// Hurry leaves out the pauses between tries, for tests. It is called before the first question.
func (e *Endpoint) Hurry() { e.pause = 0 }

// Ask posts a question as JSON and reads the answer into another object. What may pass is tried again, five times in all with pauses
// that grow: connections that are reset, the statuses 429, 500 and 504, and whatever comes with Retry-After.
func (e *Endpoint) Ask(ctx context.Context, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	pause := e.pause
	for try := 1; ; try++ {
		err := e.ask(ctx, body, answer)
		if err == nil || try == endpointTries || !passes(err) || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause + time.Duration(rand.Float64()*0.2*float64(pause))):
			pause = pause * 3 / 2
		}
	}
}

func (e *Endpoint) ask(ctx context.Context, body []byte, answer any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json, */*")
	response, data, err := Do(e.client, r, endpointAnswer)
	if err != nil {
		return err
	}
	if response.StatusCode < 200 || response.StatusCode > 299 {
		seconds, _ := strconv.Atoi(response.Header.Get("Retry-After"))
		return apierrors.NewGenericServerResponse(response.StatusCode, http.MethodPost, schema.GroupResource{}, "", string(data[:min(len(data), 256)]), seconds, true)
	}
	if err := json.Unmarshal(data, answer); err != nil {
		return fmt.Errorf("%s: the answer cannot be read: %w", e.url, err)
	}
	return nil
}

// passes tells whether what went wrong may be right a moment later.
func passes(err error) bool {
	if utilnet.IsConnectionReset(err) || utilnet.IsHTTP2ConnectionLost(err) || apierrors.IsInternalError(err) || apierrors.IsTimeout(err) ||
		apierrors.IsTooManyRequests(err) {
		return true
	}
	_, told := apierrors.SuggestsClientDelay(err)
	return told
}

// Outcome is what became of a question, in the words of upstream's metrics: success, canceled, timeout or error.
func Outcome(ctx context.Context, err error) string {
	switch {
	case err == nil:
		return "success"
	case ctx.Err() != nil:
		return "canceled"
	case utilnet.IsTimeout(err), errors.Is(err, context.DeadlineExceeded), apierrors.IsTimeout(err):
		return "timeout"
	}
	return "error"
}
