package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// BatchOptions are the flags --audit-webhook-batch-*; zero values are upstream's defaults.
type BatchOptions struct {
	BufferSize   int           // events that wait at most, 10000
	MaxSize      int           // events of one request, 400
	MaxWait      time.Duration // until a request that is not full is sent, 30 s
	InitialDelay time.Duration // before the first repetition, 10 s
}

func (o *BatchOptions) setDefaults() {
	set := func(n *int, value int) {
		if *n == 0 {
			*n = value
		}
	}
	set(&o.BufferSize, 10000)
	set(&o.MaxSize, 400)
	if o.MaxWait == 0 {
		o.MaxWait = 30 * time.Second
	}
	if o.InitialDelay == 0 {
		o.InitialDelay = 10 * time.Second
	}
}

const (
	webhookAttempts = 5
	webhookTimeout  = 30 * time.Second
)

// errFull: the events that wait are as many as may.
var errFull = errors.New("audit webhook: the buffer is full, the event is dropped")

// Webhook sends events in lists to an HTTP server. Writers never wait: an event for which there is no room is lost, and
// counted. One goroutine sends; it sleeps while there is nothing to send.
type Webhook struct {
	opts   BatchOptions
	url    string
	client *http.Client
	log    *slog.Logger
	events chan []byte
	stop   chan struct{}
	ended  chan struct{}
	ctx    context.Context // of requests under way
	cancel context.CancelFunc
	once   sync.Once
}

// OpenWebhook reads a kubeconfig file whose current context names the server, and starts sending.
func OpenWebhook(kubeconfig string, opts BatchOptions, log *slog.Logger) (*Webhook, error) {
	loaded, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("audit webhook: %w", err)
	}
	cfg, err := clientcmd.NewDefaultClientConfig(*loaded, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("audit webhook: %s: %w", kubeconfig, err)
	}
	c, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("audit webhook: %s: %w", kubeconfig, err)
	}
	return NewWebhook(cfg.Host, c, opts, log), nil
}

// NewWebhook starts sending to a URL.
func NewWebhook(url string, c *http.Client, opts BatchOptions, log *slog.Logger) *Webhook {
	opts.setDefaults()
	w := &Webhook{opts: opts, url: url, client: c, log: log, events: make(chan []byte, opts.BufferSize),
		stop: make(chan struct{}), ended: make(chan struct{})}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	go w.run()
	return w
}

// Strict implements Sink.
func (w *Webhook) Strict() bool { return false }

// Write implements Sink.
func (w *Webhook) Write(r *Record) error {
	select {
	case <-w.stop:
		return errors.New("audit webhook: closed")
	default:
	}
	select {
	case w.events <- r.Item():
		return nil
	default:
		return errFull
	}
}

// Close implements Sink.
func (w *Webhook) Close(ctx context.Context) error {
	w.once.Do(func() { close(w.stop) })
	defer w.cancel()
	select {
	case <-w.ended:
		return nil
	case <-ctx.Done():
		w.cancel()
		<-w.ended
		return ctx.Err()
	}
}

func (w *Webhook) run() {
	defer close(w.ended)
	for {
		select {
		case first := <-w.events:
			w.send(w.gather(first))
		case <-w.stop:
			for len(w.events) > 0 && w.ctx.Err() == nil {
				w.send(w.gather(<-w.events))
			}
			return
		}
	}
}

// gather waits until a list is full, old enough, or there is no more to come.
func (w *Webhook) gather(first []byte) [][]byte {
	items := [][]byte{first}
	timer := time.NewTimer(w.opts.MaxWait)
	defer timer.Stop()
	stop := w.stop
	for len(items) < w.opts.MaxSize {
		select {
		case e := <-w.events:
			items = append(items, e)
			continue
		default:
		}
		select {
		case e := <-w.events:
			items = append(items, e)
		case <-timer.C:
			return items
		case <-stop:
			return items
		}
	}
	return items
}

func (w *Webhook) send(items [][]byte) {
	body := []byte(`{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[`)
	body = append(append(body, bytes.Join(items, []byte{','})...), "]}"...)
	delay := w.opts.InitialDelay
	for attempt := 1; ; attempt++ {
		again, err := w.post(body)
		if err == nil {
			return
		}
		if !again || attempt == webhookAttempts || w.ctx.Err() != nil {
			w.log.Error("audit events could not be sent", "url", w.url, "events", len(items), "error", err)
			return
		}
		select {
		case <-time.After(delay):
		case <-w.ctx.Done():
		}
		delay = delay * 3 / 2
	}
}

// post sends one list; again tells whether a failure may pass.
func (w *Webhook) post(body []byte) (again bool, err error) {
	ctx, cancel := context.WithTimeout(w.ctx, webhookTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := w.client.Do(r)
	if err != nil {
		return true, err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
	if resp.StatusCode/100 == 2 {
		return false, nil
	}
	return resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500, fmt.Errorf("the server answered %s", resp.Status)
}
