package authn

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"unicode/utf8"

	"k8s.io/streaming/pkg/httpstream"
)

// Browsers cannot set the header Authorization of a WebSocket, and so a token may stand among the protocols that the client
// offers, which therefore are a secret until it is taken out.

const (
	protocolHeader   = "Sec-Websocket-Protocol"
	protocolOfTokens = "base64url.bearer.authorization.k8s.io."
)

// webSocketToken finds the token among the protocols of a WebSocket, "" if there is none. There must be another protocol, which
// the server can answer with.
func webSocketToken(r *http.Request) (string, error) {
	if len(r.Header[protocolHeader]) == 0 || !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || !httpstream.IsUpgradeRequest(r) {
		return "", nil
	}
	encoded, others := splitProtocols(r.Header)
	switch {
	case len(encoded) == 0:
		return "", nil
	case len(encoded) > 1:
		return "", errors.New("multiple base64.bearer.authorization tokens specified")
	}
	token, err := base64.RawURLEncoding.DecodeString(encoded[0])
	switch {
	case err != nil:
		return "", errors.New("invalid base64.bearer.authorization token encoding")
	case !utf8.Valid(token):
		return "", errors.New("invalid base64.bearer.authorization token")
	case len(token) > 0 && len(others) == 0:
		return "", errors.New("missing additional subprotocol")
	}
	return string(token), nil
}

// splitProtocols separates the encoded tokens from the other protocols that a client offers.
func splitProtocols(h http.Header) (tokens, others []string) {
	for _, line := range h[protocolHeader] {
		for p := range strings.SplitSeq(line, ",") {
			p = strings.TrimSpace(p)
			if encoded, ok := strings.CutPrefix(p, protocolOfTokens); ok {
				tokens = append(tokens, encoded)
			} else {
				others = append(others, p)
			}
		}
	}
	return tokens, others
}

// dropProtocolTokens takes tokens out of the protocols that a client offers, so that nobody behind this server gets to see them.
func dropProtocolTokens(h http.Header) {
	if len(h[protocolHeader]) == 0 {
		return
	}
	switch tokens, others := splitProtocols(h); {
	case len(tokens) == 0:
	case len(others) == 0:
		h.Del(protocolHeader)
	default:
		h.Set(protocolHeader, strings.Join(others, ","))
	}
}
