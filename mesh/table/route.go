package table

import (
	"time"
)

// PathKind says how a PathMatch reads its value.
type PathKind uint8

const (
	// PathPrefix matches whole elements: "/a" matches "/a", "/a/" and "/a/b" but not "/ab"; a slash at the end of the value does not count. An empty
	// value or "/" matches everything. (Gateway API PathPrefix, Ingress Prefix; the zero value matches everything.)
	PathPrefix PathKind = iota
	// PathExact matches the path as it is.
	PathExact
	// PathString matches every path that begins with the value (Istio's prefix).
	PathString
	// PathRegex matches the whole path by an RE2 expression.
	PathRegex
	// PathGRPC matches "/Service/Method"; one of the two may be empty, which matches any.
	PathGRPC
	// PathGRPCRegex is PathGRPC with RE2 expressions.
	PathGRPCRegex
)

// PathMatch is a condition on the path of a request, without its query.
type PathMatch struct {
	// Kind says how Value is read.
	Kind PathKind
	// Value is the path, prefix or expression.
	Value string
	// Service and Method are for PathGRPC and PathGRPCRegex.
	Service, Method string
	// Fold ignores case (Istio's ignoreUriCase); not for expressions.
	Fold bool
}

// ValueKind says how a ValueMatch reads its value.
type ValueKind uint8

const (
	// ValueExact compares.
	ValueExact ValueKind = iota
	// ValuePrefix matches the beginning.
	ValuePrefix
	// ValueRegex matches the whole value by an RE2 expression.
	ValueRegex
	// ValuePresent matches any value.
	ValuePresent
)

// ValueMatch is a condition on a header or a query parameter. A header that comes in several lines is joined by commas; of a
// parameter that comes several times the first counts (Gateway API leaves both open).
type ValueMatch struct {
	// Name of the header (any case) or parameter (case counts). ":authority", ":scheme" and ":method" are the request's own.
	Name string
	// Kind says how Value is read.
	Kind ValueKind
	// Value compared with.
	Value string
	// Not turns the condition round: it holds too when there is no such header.
	Not bool
}

// Match is a set of conditions; all must hold.
type Match struct {
	// Path of the request.
	Path PathMatch
	// Method, or "" for any.
	Method string
	// Headers and Query.
	Headers, Query []ValueMatch
}

// Route is one match of a virtual host and what to do then. The matches of one rule are routes that share the Rule.
type Route struct {
	// Match is when.
	Match Match
	// Rule is what.
	Rule *Rule
}

// Rule is what is done with a request. In this order: Fault, CORS, Direct or Redirect, then Rewrite and Request are applied and the request goes to one of
// Backends and to Mirrors. A Rule must not change once a virtual host was made with it.
type Rule struct {
	// Name for logs and metrics: namespace/name of the object and the rule's number, say.
	Name string
	// Backends to choose from by weight. None, or the choice of one without an id, answers 500; one without endpoints answers 503.
	Backends []Weighted
	// Direct answers without a backend.
	Direct *Direct
	// Redirect answers with a Location.
	Redirect *Redirect
	// Rewrite changes host and path of the request that the backend sees.
	Rewrite *Rewrite
	// Request and Response edit headers.
	Request, Response *HeaderEdit
	// Mirrors get copies; what they answer is dropped. Requests with a body that is longer than 64 KiB or of unknown length are not mirrored.
	Mirrors []Mirror
	// CORS answers preflights and adds the headers of cross-origin answers.
	CORS *CORS
	// Timeouts of the request.
	Timeouts Timeouts
	// Retry says what is tried again beyond what is always safe: a request of which nothing was sent is always sent again elsewhere.
	Retry *Retry
	// Session keeps a client at the endpoint that it first got.
	Session *Session
	// Fault delays or aborts a share of the requests (mesh).
	Fault *Fault
}

// Weighted is one backend of several.
type Weighted struct {
	// Backend is an id of the table, or "" for a reference that does not resolve.
	Backend string
	// Weight beside the others'; 0 gets nothing.
	Weight uint32
	// Request and Response edit headers of what goes to this backend, after the rule's own.
	Request, Response *HeaderEdit
	// Rewrite for this backend in place of the rule's.
	Rewrite *Rewrite
}

// Header is a name and a value.
type Header struct {
	Name, Value string
}

// HeaderEdit changes headers: Set, then Add, then Remove. "Host" in Set changes the authority.
type HeaderEdit struct {
	// Set replaces, Add appends.
	Set, Add []Header
	// Remove names.
	Remove []string
}

// PathRewrite is the new path: Full replaces all of it; otherwise Prefix replaces what the route's prefix matched.
type PathRewrite struct {
	// Full is the whole new path, "" if Prefix counts.
	Full string
	// Prefix in place of the matched prefix; "" or "/" removes it.
	Prefix string
}

// Rewrite changes the request for the backend. The query stays.
type Rewrite struct {
	// Host is the new authority, "" keeps it.
	Host string
	// Path is the new path, nil keeps it.
	Path *PathRewrite
}

// Redirect answers with Location. Empty fields are those of the request; the port is left away where it is the scheme's.
type Redirect struct {
	// Scheme is http or https, Host a name without port.
	Scheme, Host string
	// Port 0 with a Scheme means the scheme's own port; without, the listener's.
	Port uint16
	// Path is the new path.
	Path *PathRewrite
	// Code is 301, 302, 303, 307 or 308; 302 if 0.
	Code int
}

// Direct is an answer of the proxy's own.
type Direct struct {
	// Code of the answer.
	Code int
	// ContentType and Body of the answer.
	ContentType, Body string
}

// Mirror is a copy of a share of the requests: Numerator of Denominator, all if Denominator is 0.
type Mirror struct {
	// Backend is an id of the table.
	Backend string
	// Numerator and Denominator are the share.
	Numerator, Denominator uint32
}

// CORS is the cross-origin policy of a rule (Gateway API HTTPCORSFilter).
type CORS struct {
	// Origins are "https://example.com", "https://*.example.com" or "*".
	Origins []string
	// Methods, Headers and Expose are lists for the headers of the same names; "*" means any, except with Credentials, where what was asked for is named.
	Methods, Headers, Expose []string
	// Credentials allows cookies.
	Credentials bool
	// MaxAge of a preflight's answer; 0 leaves the header away.
	MaxAge time.Duration
}

// Timeouts of a request; 0 is none.
type Timeouts struct {
	// Request is from the request's head to the end of the response (504).
	Request time.Duration
	// Backend is for each try, to the end of the backend's response (504).
	Backend time.Duration
}

// Retry says what is tried again, on another endpoint where there is one.
type Retry struct {
	// Codes of responses that are tried again.
	Codes []int
	// Attempts is how often again.
	Attempts int
	// Backoff is the pause before the first retry; it doubles, up to ten times. 25 ms if 0.
	Backoff time.Duration
	// Reset retries connections that broke before an answer, whatever the method (Istio's "reset").
	Reset bool
}

// Session keeps clients at endpoints, by a cookie or by a header that the proxy gives out.
type Session struct {
	// Cookie or Header is the name; one of the two is set.
	Cookie, Header string
	// Path of the cookie, "/" if empty.
	Path string
	// Lifetime of the cookie; 0 makes it a session cookie.
	Lifetime time.Duration
}

// Fault is what is done to a share of the requests, for tests of clients. Shares are in millionths.
type Fault struct {
	// DelayShare of the requests wait for Delay.
	DelayShare uint32
	Delay      time.Duration
	// AbortShare of the requests are answered with AbortCode.
	AbortShare uint32
	AbortCode  int
}
