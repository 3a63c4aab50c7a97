package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"coracle.dev/coracle/client"
)

// Token asks for a token of the service account that ask bears the namespace and name of.
func (c *Client) Token(ctx context.Context, ask *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	k, err := c.kind(client.ServiceAccounts.Name)
	if err != nil {
		return nil, err
	}
	body, err := envelope("authentication.k8s.io/v1", "TokenRequest", ask)
	if err != nil {
		return nil, err
	}
	a, err := c.do(ctx, request{method: http.MethodPost, kind: k, namespace: ask.Namespace, name: ask.Name, subresource: "token", body: body, media: protobufMedia})
	if err != nil {
		return nil, err
	}
	out := &authenticationv1.TokenRequest{}
	if !bytes.HasPrefix(a.data, magic) {
		return out, json.Unmarshal(a.data, out)
	}
	var env runtime.Unknown
	if err := env.Unmarshal(a.data[len(magic):]); err != nil {
		return nil, err
	}
	if env.Kind != "TokenRequest" {
		return nil, fmt.Errorf("the server answered with %s", env.Kind)
	}
	return out, out.Unmarshal(env.Raw)
}
