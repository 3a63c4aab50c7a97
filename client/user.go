package client

import (
	"context"
	"slices"
)

// User is who a request acts for: what authentication found, or what a part of
// this program says of itself. It is immutable once it is in a context.
type User struct {
	// Name is unique among users ("system:serviceaccount:default:builder").
	Name string
	// UID tells apart users that bear the same name one after the other, "" if unknown.
	UID string
	// Groups are all groups of the user, "system:authenticated" among them.
	Groups []string
	// Extra is further knowledge of the authenticator, by lower-case key.
	Extra map[string][]string
}

// The groups and users with a meaning of their own in Kubernetes.
const (
	GroupMasters         = "system:masters"
	GroupAuthenticated   = "system:authenticated"
	GroupUnauthenticated = "system:unauthenticated"
	GroupNodes           = "system:nodes"
	GroupServiceAccounts = "system:serviceaccounts"
	UserAnonymous        = "system:anonymous"
	// UserServer is the API server itself, which acts where no other user is known.
	UserServer = "system:apiserver"
)

// In tells whether the user is in a group.
func (u User) In(group string) bool { return slices.Contains(u.Groups, group) }

type userKey struct{}

// WithUser returns a context whose writes are made as u: audit, admission and
// field managers see that name. A Writer in this process does not ask
// whether u may.
func WithUser(ctx context.Context, u User) context.Context {
	return context.WithValue(ctx, userKey{}, u)
}

// UserFrom returns the acting user, and whether the context has one.
func UserFrom(ctx context.Context) (User, bool) {
	u, ok := ctx.Value(userKey{}).(User)
	return u, ok
}

// ServiceAccountUser is the user that a service account acts as; uid may be empty.
func ServiceAccountUser(namespace, name, uid string) User {
	return User{
		Name:   "system:serviceaccount:" + namespace + ":" + name,
		UID:    uid,
		Groups: []string{GroupServiceAccounts, GroupServiceAccounts + ":" + namespace, GroupAuthenticated},
	}
}
