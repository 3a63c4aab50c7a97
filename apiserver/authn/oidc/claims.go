package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	authenticationcel "k8s.io/apiserver/pkg/authentication/cel"

	"coracle.dev/coracle/apiserver/authn"
	"coracle.dev/coracle/client"
)

// claims are what a token says, not yet read.
type claims map[string]json.RawMessage

// read reads one claim.
func (c claims) read(name string, into any) error {
	raw, ok := c[name]
	if !ok {
		return errors.New("claim not present")
	}
	return json.Unmarshal(raw, into)
}

// value is what CEL expressions see as "claims".
func (c claims) value() (traits.Mapper, error) {
	all := make(map[string]any, len(c))
	for name, raw := range c {
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, fmt.Errorf("parse claim %s: %w", name, err)
		}
		all[name] = v
	}
	return types.NewStringInterfaceMap(types.DefaultTypeAdapter, all), nil
}

// texts is one string or a list of them.
type texts []string

// UnmarshalJSON implements json.Unmarshaler.
func (t *texts) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*t = texts{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(t))
}

// user maps claims to a user, as the configuration says, and checks its rules.
func (v *verifier) user(ctx context.Context, c claims) (client.User, error) {
	var u client.User
	seen, err := c.value()
	if err != nil {
		return u, err
	}
	if u.Name, err = v.username(ctx, c, seen); err != nil {
		return u, err
	}
	if u.Groups, err = v.groups(ctx, c, seen); err != nil {
		return u, err
	}
	if u.UID, err = v.uid(ctx, c, seen); err != nil {
		return u, err
	}
	if u.Extra, err = v.extra(ctx, c, seen); err != nil {
		return u, err
	}
	if err := v.checkClaims(ctx, c, seen); err != nil {
		return u, err
	}
	return u, v.checkUser(ctx, &u)
}

func (v *verifier) username(ctx context.Context, c claims, seen traits.Mapper) (string, error) {
	if v.rules.Username != nil {
		name, err := text(v.rules.Username.EvalClaimMapping(ctx, seen))
		switch {
		case err != nil:
			return "", fmt.Errorf("error evaluating username claim expression: %w", err)
		case name == "":
			return "", errors.New("empty username via CEL expression is not allowed")
		}
		return name, nil
	}
	m := v.config.ClaimMappings.Username
	var name string
	if err := c.read(m.Claim, &name); err != nil {
		return "", fmt.Errorf("parse username claims %q: %w", m.Claim, err)
	}
	if _, ok := c["email_verified"]; ok && m.Claim == "email" {
		var verified bool
		if err := c.read("email_verified", &verified); err != nil {
			return "", fmt.Errorf("parse 'email_verified' claim: %w", err)
		}
		if !verified {
			return "", errors.New("email not verified")
		}
	}
	return prefixed(m.Prefix, name), nil
}

func prefixed(prefix *string, s string) string {
	if prefix == nil {
		return s
	}
	return *prefix + s
}

func (v *verifier) groups(ctx context.Context, c claims, seen traits.Mapper) ([]string, error) {
	m := v.config.ClaimMappings.Groups
	if _, ok := c[m.Claim]; ok && m.Claim != "" {
		var groups texts
		if err := c.read(m.Claim, &groups); err != nil {
			return nil, fmt.Errorf("parse groups claim %q: %w", m.Claim, err)
		}
		for i := range groups {
			groups[i] = prefixed(m.Prefix, groups[i])
		}
		return groups, nil
	}
	if v.rules.Groups == nil {
		return nil, nil
	}
	result, err := v.rules.Groups.EvalClaimMapping(ctx, seen)
	if err != nil {
		return nil, fmt.Errorf("error evaluating group claim expression: %w", err)
	}
	groups, err := list(result.EvalResult)
	if err != nil {
		return nil, fmt.Errorf("error evaluating group claim expression: %w", err)
	}
	return groups, nil
}

func (v *verifier) uid(ctx context.Context, c claims, seen traits.Mapper) (string, error) {
	if v.rules.UID != nil {
		uid, err := text(v.rules.UID.EvalClaimMapping(ctx, seen))
		if err != nil {
			return "", fmt.Errorf("error evaluating uid claim expression: %w", err)
		}
		return uid, nil
	}
	claim := v.config.ClaimMappings.UID.Claim
	if claim == "" {
		return "", nil
	}
	var uid string
	if err := c.read(claim, &uid); err != nil {
		return "", fmt.Errorf("parse uid claim %q: %w", claim, err)
	}
	return uid, nil
}

func (v *verifier) extra(ctx context.Context, c claims, seen traits.Mapper) (map[string][]string, error) {
	extra := map[string][]string{}
	var id string
	if c.read("jti", &id) == nil && id != "" {
		extra[authn.CredentialID] = []string{"JTI=" + id}
	}
	if v.rules.Extra == nil {
		return extra, nil
	}
	results, err := v.rules.Extra.EvalClaimMappings(ctx, seen)
	if err != nil {
		return nil, err
	}
	for _, r := range results {
		mapping, ok := r.ExpressionAccessor.(*authenticationcel.ExtraMappingExpression)
		if !ok {
			return nil, fmt.Errorf("error evaluating extra claim expression: %T", r.ExpressionAccessor)
		}
		values, err := list(r.EvalResult)
		if err != nil {
			return nil, fmt.Errorf("error evaluating extra claim expression: %s: %w", mapping.Expression, err)
		}
		if len(values) > 0 {
			extra[mapping.Key] = values
		}
	}
	return extra, nil
}

// checkClaims holds the token to the rules for claims.
func (v *verifier) checkClaims(ctx context.Context, c claims, seen traits.Mapper) error {
	for _, rule := range v.config.ClaimValidationRules {
		if rule.Claim == "" {
			continue
		}
		if _, ok := c[rule.Claim]; !ok {
			return fmt.Errorf("required claim %s not present in ID token", rule.Claim)
		}
		var value string
		if err := c.read(rule.Claim, &value); err != nil {
			return fmt.Errorf("parse claim %s: %w", rule.Claim, err)
		}
		if value != rule.RequiredValue {
			return fmt.Errorf("required claim %s value does not match. Got = %s, want = %s", rule.Claim, value, rule.RequiredValue)
		}
	}
	if v.rules.ClaimValidationRules == nil {
		return nil
	}
	results, err := v.rules.ClaimValidationRules.EvalClaimMappings(ctx, seen)
	if err == nil {
		err = holds(results)
	}
	if err != nil {
		return fmt.Errorf("error evaluating claim validation expression: %w", err)
	}
	return nil
}

// checkUser holds the user to the rules for users.
func (v *verifier) checkUser(ctx context.Context, u *client.User) error {
	if v.rules.UserValidationRules == nil {
		return nil
	}
	groups, extra := u.Groups, u.Extra
	if groups == nil {
		groups = []string{}
	}
	seen := types.NewStringInterfaceMap(types.DefaultTypeAdapter, map[string]any{
		"username": u.Name, "uid": u.UID, "groups": groups, "extra": extra})
	results, err := v.rules.UserValidationRules.EvalUser(ctx, seen)
	if err == nil {
		err = holds(results)
	}
	if err != nil {
		return fmt.Errorf("error evaluating user info validation rule: %w", err)
	}
	return nil
}

// holds is nil if all rules hold.
func holds(results []authenticationcel.EvaluationResult) error {
	for _, r := range results {
		ok, isBool := r.EvalResult.Value().(bool)
		switch {
		case !isBool:
			return errors.New("validation expression must return a boolean")
		case !ok:
			return fmt.Errorf("validation expression '%s' failed: %s", r.ExpressionAccessor.GetExpression(), message(r.ExpressionAccessor))
		}
	}
	return nil
}

func message(a authenticationcel.ExpressionAccessor) string {
	switch a := a.(type) {
	case *authenticationcel.ClaimValidationCondition:
		return a.Message
	case *authenticationcel.UserValidationCondition:
		return a.Message
	}
	return ""
}

// text is the result of an expression that gives a string.
func text(r authenticationcel.EvaluationResult, err error) (string, error) {
	if err != nil {
		return "", err
	}
	s, ok := r.EvalResult.Value().(string)
	if !ok {
		return "", errors.New("expression must return a string")
	}
	return s, nil
}

// list is the result of an expression that gives a string, a list of strings or nothing. Empty strings are left out.
func list(v ref.Val) ([]string, error) {
	var out []string
	add := func(v any) error {
		if val, ok := v.(ref.Val); ok {
			v = val.Value()
		}
		s, ok := v.(string)
		if !ok {
			return errNotStrings
		}
		if s != "" {
			out = append(out, s)
		}
		return nil
	}
	switch v := v.(type) {
	case types.Null:
		return nil, nil
	case types.String:
		return out, add(v)
	case traits.Lister:
		for it := v.Iterator(); it.HasNext() == types.True; {
			if err := add(it.Next()); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return nil, errNotStrings
}
