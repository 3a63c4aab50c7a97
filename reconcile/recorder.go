package reconcile

import (
	"container/list"
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/client"
)

// Limits of the recorder, as upstream's event correlator has them.
const (
	recorderQueue     = 1000             // events under way; more are dropped and counted
	recorderMemory    = 4096             // events remembered for merging
	recorderSpamBurst = 25               // events an object may cause at once ...
	recorderSpamEvery = 5 * time.Minute  // ... and then one in this time
	recorderSimilar   = 10               // similar events with different messages, before they are combined
	recorderInterval  = 10 * time.Minute // within which they count as similar
	combinedPrefix    = "(combined from similar events): "
	eventTimeout      = 10 * time.Second
)

// Recorder writes core/v1 Events in the background. Repeated events are merged
// into one with a count, similar ones are combined, and a source that
// floods is held back, as upstream's correlator does. It never blocks its caller: when
// its queue is full, an event is dropped and counted.
type Recorder struct {
	client  client.Client
	log     *slog.Logger
	now     func() time.Time
	queue   chan record
	dropped atomic.Uint64

	// Below: of the goroutine in Run alone.
	memory lru
	stamp  int64 // in the name of the last event, so that no two names are the same
}

type record struct {
	user   client.User
	source corev1.EventSource
	event  Event
	at     time.Time
}

// NewRecorder returns a recorder that writes through c once Run is called.
func NewRecorder(c client.Client, log *slog.Logger, now func() time.Time) *Recorder {
	if now == nil {
		now = time.Now
	}
	return &Recorder{client: c, log: log, now: now, queue: make(chan record, recorderQueue), memory: lru{limit: recorderMemory}}
}

// Record writes an event soon, as user u and in the name of source. Event.Regarding names
// at least kind, namespace and name.
func (r *Recorder) Record(u client.User, source corev1.EventSource, ev Event) {
	select {
	case r.queue <- record{u, source, ev, r.now()}:
	default:
		r.dropped.Add(1)
	}
}

// Dropped is how many events were lost because the queue was full.
func (r *Recorder) Dropped() uint64 { return r.dropped.Load() }

// Run writes events until ctx is done.
func (r *Recorder) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case rec := <-r.queue:
			r.write(ctx, rec)
		}
	}
}

// similarKey joins events that differ in their message only; sameKey those that are
// repetitions; spamKey all of one source about one object.
type (
	similarKey struct {
		source           corev1.EventSource
		regarding        corev1.ObjectReference
		evType, evReason string
	}
	sameKey struct {
		similarKey
		message string
	}
	spamKey struct {
		source    corev1.EventSource
		regarding corev1.ObjectReference
	}
)

type similar struct {
	messages map[string]bool
	last     time.Time
}

type spam struct {
	tokens float64
	last   time.Time
}

type written struct{ namespace, name string }

// write merges a record with what came before and stores it.
func (r *Recorder) write(ctx context.Context, rec record) {
	regarding := rec.event.Regarding
	regarding.ResourceVersion = ""
	like := similarKey{rec.source, regarding, rec.event.Type, rec.event.Reason}
	same := sameKey{like, rec.event.Message}
	message := rec.event.Message
	if r.combine(like, message, rec.at) {
		same.message, message = "", combinedPrefix+message
	}
	if !r.allow(spamKey{rec.source, regarding}, rec.at) {
		r.dropped.Add(1)
		return
	}
	ctx, cancel := context.WithTimeout(client.WithUser(ctx, rec.user), eventTimeout)
	defer cancel()
	if w, ok := r.memory.get(same).(written); ok && r.repeat(ctx, w, message, rec.at) {
		return
	}
	r.stamp = max(r.stamp+1, rec.at.UnixNano())
	ev := newEvent(rec, message, r.stamp)
	out, err := r.client.Create(ctx, client.Events.Name, ev, client.WriteOptions{FieldManager: fieldManager})
	if err != nil {
		if ctx.Err() == nil && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			r.log.Debug("event not recorded", "reason", rec.event.Reason, "error", err)
		}
		return
	}
	r.memory.put(same, written{out.GetNamespace(), out.GetName()})
}

// combine tells whether an event comes after too many similar ones.
func (r *Recorder) combine(key similarKey, message string, at time.Time) bool {
	s, _ := r.memory.get(key).(*similar)
	if s == nil || at.Sub(s.last) > recorderInterval {
		s = &similar{messages: map[string]bool{}}
		r.memory.put(key, s)
	}
	s.last = at
	if len(s.messages) < recorderSimilar {
		s.messages[message] = true
		return false
	}
	return !s.messages[message]
}

// allow is a token bucket for each source and object.
func (r *Recorder) allow(key spamKey, at time.Time) bool {
	s, _ := r.memory.get(key).(*spam)
	if s == nil {
		s = &spam{tokens: recorderSpamBurst, last: at}
		r.memory.put(key, s)
	}
	s.tokens = min(recorderSpamBurst, s.tokens+at.Sub(s.last).Seconds()/recorderSpamEvery.Seconds())
	s.last = at
	if s.tokens < 1 {
		return false
	}
	s.tokens--
	return true
}

// repeat counts an event that is there already; false if it is gone or could not be changed.
func (r *Recorder) repeat(ctx context.Context, w written, message string, at time.Time) bool {
	_, err := client.Mutate(ctx, r.client, client.Events, w.namespace, w.name, "", func(ev *corev1.Event) bool {
		ev.Count++
		ev.LastTimestamp = metav1.NewTime(at)
		ev.Message = message
		return true
	})
	return err == nil
}

func newEvent(rec record, message string, stamp int64) *corev1.Event {
	ref := rec.event.Regarding
	namespace := ref.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	at := metav1.NewTime(rec.at)
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      fmt.Sprintf("%s.%x", ref.Name, stamp),
		},
		InvolvedObject:      ref,
		Reason:              rec.event.Reason,
		Message:             message,
		Type:                rec.event.Type,
		Source:              rec.source,
		FirstTimestamp:      at,
		LastTimestamp:       at,
		Count:               1,
		ReportingController: rec.source.Component,
		ReportingInstance:   rec.source.Host,
	}
}

// Regarding is the reference with which events name an object. apiVersion and kind are those of the hub type,
// which objects in the store need not carry.
func Regarding(apiVersion, kind string, obj metav1.Object) corev1.ObjectReference {
	return corev1.ObjectReference{
		APIVersion:      apiVersion,
		Kind:            kind,
		Namespace:       obj.GetNamespace(),
		Name:            obj.GetName(),
		UID:             types.UID(obj.GetUID()),
		ResourceVersion: obj.GetResourceVersion(),
	}
}

// lru remembers the last values put under a key.
type lru struct {
	limit int
	order list.List // of *lruEntry, newest first
	byKey map[any]*list.Element
}

type lruEntry struct{ key, value any }

func (l *lru) get(key any) any {
	el := l.byKey[key]
	if el == nil {
		return nil
	}
	l.order.MoveToFront(el)
	return el.Value.(*lruEntry).value
}

func (l *lru) put(key, value any) {
	if el := l.byKey[key]; el != nil {
		el.Value.(*lruEntry).value = value
		l.order.MoveToFront(el)
		return
	}
	if l.byKey == nil {
		l.byKey = map[any]*list.Element{}
	}
	l.byKey[key] = l.order.PushFront(&lruEntry{key, value})
	if l.order.Len() > l.limit {
		oldest := l.order.Back()
		l.order.Remove(oldest)
		delete(l.byKey, oldest.Value.(*lruEntry).key)
	}
}
