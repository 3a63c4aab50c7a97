package audit

import (
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"coracle.dev/coracle/client"
)

// maxAgent is how much of a User-Agent is recorded.
const maxAgent = 1024

// Annotations that the server itself makes.
const (
	DecisionAnnotation   = "authorization.k8s.io/decision"
	ReasonAnnotation     = "authorization.k8s.io/reason"
	DeprecatedAnnotation = "k8s.io/deprecated"
	RemovedAnnotation    = "k8s.io/removed-release"
)

// Event is what is known of one request. Its methods may be called on nil, which is a request that is not recorded, and
// from several goroutines.
type Event struct {
	recorder *Recorder
	decision Decision
	id       string
	uri      string
	agent    string
	sources  []net.IP
	attrs    Attributes
	received time.Time

	mu           sync.Mutex // guards what follows
	user         client.User
	impersonated *client.User
	uid, rv      string
	code         int
	status       *metav1.Status
	request      json.RawMessage
	response     json.RawMessage
	annotations  map[string]string
	done         bool
}

// Begin decides whether a request is recorded, and if so writes its first event. attrs.User is the authenticated user, nil
// if there is none. The error is that of a sink that must not be missed (blocking-strict): the request must then be refused.
func (rec *Recorder) Begin(r *http.Request, id string, attrs *Attributes, now time.Time) (*Event, error) {
	decision := rec.policy.Decide(attrs)
	if decision.Level == None {
		return nil, nil
	}
	e := &Event{recorder: rec, decision: decision, id: id, uri: r.RequestURI, agent: shorten(r.UserAgent()), attrs: *attrs,
		received: now, sources: utilnet.SourceIPs(r)}
	if e.uri == "" {
		e.uri = r.URL.RequestURI()
	}
	if attrs.User != nil {
		e.user = *attrs.User
	}
	return e, e.stage(RequestReceived, now)
}

// shorten bounds a text that clients choose.
func shorten(s string) string {
	const mark = "...TRUNCATED"
	if len(s) <= maxAgent {
		return s
	}
	return s[:maxAgent-len(mark)] + mark
}

// Level is how much is recorded, None for a nil event.
func (e *Event) Level() Level {
	if e == nil {
		return None
	}
	return e.decision.Level
}

// Impersonate says as whom the request acts.
func (e *Event) Impersonate(u client.User) {
	if e != nil {
		e.mu.Lock()
		e.impersonated = &u
		e.mu.Unlock()
	}
}

// Annotate adds to the event's annotations. The first value of a key stays, as upstream's.
func (e *Event) Annotate(key, value string) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.annotations == nil {
		e.annotations = make(map[string]string, 4)
	}
	if _, ok := e.annotations[key]; !ok {
		e.annotations[key] = value
	}
}

// Decide records what the authorizer said; the last time counts.
func (e *Event) Decide(allowed bool, reason string) {
	if e == nil {
		return
	}
	e.mu.Lock()
	delete(e.annotations, DecisionAnnotation)
	delete(e.annotations, ReasonAnnotation)
	e.mu.Unlock()
	decision := "forbid"
	if allowed {
		decision = "allow"
	}
	e.Annotate(DecisionAnnotation, decision)
	e.Annotate(ReasonAnnotation, reason)
}

// Object completes the reference to the object that a request is about from the object that it carries.
func (e *Event) Object(obj metav1.Object) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.attrs.Namespace == "" {
		e.attrs.Namespace = obj.GetNamespace()
	}
	if e.attrs.Name == "" {
		e.attrs.Name = obj.GetName()
	}
	if e.uid == "" {
		e.uid = string(obj.GetUID())
	}
	if e.rv == "" {
		e.rv = obj.GetResourceVersion()
	}
}

// WantsRequest tells whether the body of the request is recorded.
func (e *Event) WantsRequest() bool { return e.Level() >= Request }

// WantsResponse tells whether the body of the response is recorded.
func (e *Event) WantsResponse() bool { return e.Level() >= RequestResponse }

// Request records the body of the request, which is JSON.
func (e *Event) Request(body []byte) {
	if e.WantsRequest() && json.Valid(body) {
		body = e.strip(body)
		e.mu.Lock()
		e.request = body
		e.mu.Unlock()
	}
}

// Response records the body of the response, which is JSON.
func (e *Event) Response(body []byte) {
	if e.WantsResponse() {
		body = e.strip(body)
		e.mu.Lock()
		e.response = body
		e.mu.Unlock()
	}
}

// Status records that the answer is a Status, whose main fields are told at every level.
func (e *Event) Status(s *metav1.Status) {
	if e != nil {
		e.mu.Lock()
		e.status = &metav1.Status{Status: s.Status, Message: s.Message, Reason: s.Reason, Details: s.Details, Code: s.Code}
		e.mu.Unlock()
	}
}

// Started records that the response to a long-running request began.
func (e *Event) Started(code int, now time.Time) {
	if e != nil {
		e.mu.Lock()
		e.code = code
		e.mu.Unlock()
		_ = e.stage(ResponseStarted, now) // the answer is on its way already
	}
}

// Complete records the end of a request that was answered with a code.
func (e *Event) Complete(code int, now time.Time) { e.end(ResponseComplete, code, nil, now) }

// Panicked records that the server failed at a request.
func (e *Event) Panicked(reason string, now time.Time) {
	e.end(Panic, http.StatusInternalServerError, &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError, Message: "APIServer panic'd: " + reason,
	}, now)
}

func (e *Event) end(s Stage, code int, status *metav1.Status, now time.Time) {
	if e == nil {
		return
	}
	e.mu.Lock()
	if e.done {
		e.mu.Unlock()
		return
	}
	e.done, e.code = true, code
	if status != nil {
		e.status = status
	}
	e.mu.Unlock()
	_ = e.stage(s, now) // the answer is on its way already
}

// stage writes the event as it stands, unless the policy omits the stage.
func (e *Event) stage(s Stage, now time.Time) error {
	if e.decision.Omit&s != 0 {
		return nil
	}
	return e.recorder.write(e, s, now)
}

// strip takes managedFields out of an object, or out of the items of a list.
func (e *Event) strip(body []byte) []byte {
	if !e.decision.OmitManagedFields {
		return body
	}
	var obj map[string]any
	if json.Unmarshal(body, &obj) != nil {
		return body
	}
	drop := func(o map[string]any) bool {
		meta, _ := o["metadata"].(map[string]any)
		_, had := meta["managedFields"]
		delete(meta, "managedFields")
		return had
	}
	changed := drop(obj)
	items, _ := obj["items"].([]any)
	for _, item := range items {
		if o, ok := item.(map[string]any); ok {
			changed = drop(o) || changed
		}
	}
	if !changed {
		return body
	}
	out, err := json.Marshal(obj)
	if err != nil {
		return body
	}
	return out
}

// appendJSON appends the event as audit.k8s.io/v1 JSON, without a newline. It is written by hand since it is
// written for each request. typed says whether kind and apiVersion stand in it, which they do not in a list.
func (e *Event) appendJSON(b []byte, s Stage, now time.Time, typed bool) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	b = append(b, '{')
	if typed {
		b = append(b, `"kind":"Event","apiVersion":"audit.k8s.io/v1",`...)
	}
	b = append(append(b, `"level":"`...), e.decision.Level.String()...)
	b = appendString(append(b, `","auditID":`...), e.id)
	b = append(append(b, `,"stage":"`...), s.String()...)
	b = appendString(append(b, `","requestURI":`...), e.uri)
	b = appendString(append(b, `,"verb":`...), e.attrs.Verb)
	b = appendUser(append(b, `,"user":`...), &e.user)
	if e.impersonated != nil {
		b = appendUser(append(b, `,"impersonatedUser":`...), e.impersonated)
	}
	for i, ip := range e.sources {
		sep := `,`
		if i == 0 {
			sep = `,"sourceIPs":[`
		}
		b = append(b, sep...)
		b = appendString(b, ip.String())
	}
	if len(e.sources) > 0 {
		b = append(b, ']')
	}
	b = appendField(b, "userAgent", e.agent)
	if e.attrs.IsResource {
		b = e.appendReference(append(b, `,"objectRef":`...))
	}
	// At the beginning there is neither an answer nor a body.
	if s != RequestReceived {
		b = e.appendStatus(b)
		if len(e.request) > 0 {
			b = appendCompact(append(b, `,"requestObject":`...), e.request)
		}
		if len(e.response) > 0 {
			b = appendCompact(append(b, `,"responseObject":`...), e.response)
		}
	}
	b = appendTime(append(b, `,"requestReceivedTimestamp":"`...), e.received)
	b = appendTime(append(b, `","stageTimestamp":"`...), now)
	b = append(b, '"')
	if len(e.annotations) > 0 {
		b = appendStrings(append(b, `,"annotations":`...), e.annotations)
	}
	return append(b, '}')
}

func (e *Event) appendReference(b []byte) []byte {
	start := len(b)
	a := &e.attrs
	for _, f := range [...]struct{ name, value string }{
		{"resource", a.Resource}, {"namespace", a.Namespace}, {"name", a.Name}, {"uid", e.uid},
		{"apiGroup", a.Group}, {"apiVersion", a.Version}, {"resourceVersion", e.rv}, {"subresource", a.Subresource},
	} {
		b = appendField(b, f.name, f.value)
	}
	if len(b) == start {
		return append(b, "{}"...)
	}
	b[start] = '{' // in place of the first comma
	return append(b, '}')
}

func (e *Event) appendStatus(b []byte) []byte {
	if e.code == 0 && e.status == nil {
		return b
	}
	if e.status == nil {
		b = append(b, `,"responseStatus":{"metadata":{},"code":`...)
		return append(strconv.AppendInt(b, int64(e.code), 10), '}')
	}
	status := *e.status
	status.Code = int32(e.code)
	data, err := json.Marshal(&status)
	if err != nil {
		return b
	}
	return append(append(b, `,"responseStatus":`...), data...)
}

func appendUser(b []byte, u *client.User) []byte {
	start := len(b)
	b = appendField(b, "username", u.Name)
	b = appendField(b, "uid", u.UID)
	if len(u.Groups) > 0 {
		b = appendList(append(b, `,"groups":`...), u.Groups)
	}
	if len(u.Extra) > 0 {
		b = append(b, `,"extra":`...)
		for i, key := range slices.Sorted(maps.Keys(u.Extra)) {
			b = append(b, "{,"[min(i, 1)])
			b = appendList(append(appendString(b, key), ':'), u.Extra[key])
		}
		b = append(b, '}')
	}
	if len(b) == start {
		return append(b, "{}"...)
	}
	b[start] = '{'
	return append(b, '}')
}

func appendList(b []byte, list []string) []byte {
	b = append(b, '[')
	for i, s := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, s)
	}
	return append(b, ']')
}

func appendStrings(b []byte, m map[string]string) []byte {
	b = append(b, '{')
	first := true
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if !first {
			b = append(b, ',')
		}
		first = false
		b = appendString(append(appendString(b, key), ':'), m[key])
	}
	return append(b, '}')
}

// appendField appends ,"name":"value" unless the value is empty.
func appendField(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(append(append(b, `,"`...), name...), `":`...)
	return appendString(b, value)
}

// appendTime appends a time as metav1.MicroTime has it.
func appendTime(b []byte, t time.Time) []byte { return t.UTC().AppendFormat(b, metav1.RFC3339Micro) }

// appendString appends a JSON string. What is plain, as nearly everything is, is copied as it is.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			quoted, _ := json.Marshal(s) // strings always can
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// appendCompact appends JSON in one line.
func appendCompact(b, body []byte) []byte {
	for _, c := range body {
		if c == '\n' {
			packed, err := json.Marshal(json.RawMessage(body))
			if err != nil {
				return append(b, "null"...)
			}
			return append(b, packed...)
		}
	}
	return append(b, body...)
}
