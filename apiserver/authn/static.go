package authn

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"coracle.dev/coracle/client"
)

// Static verifies tokens of a list that is read once
// (https://kubernetes.io/docs/reference/access-authn-authz/authentication/#static-token-file). It keeps their hashes, not the tokens.
type Static struct {
	users map[[sha256.Size]byte]client.User
}

// LoadStatic reads a file of comma-separated values: token, user name, UID and, if there are any, groups in quotes. Of lines with the
// same token the last counts; those without a token are passed over. Errors name the line and hold no token.
func LoadStatic(path string) (*Static, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("token file: %w", err)
	}
	s, err := ParseStatic(data)
	if err != nil {
		return nil, fmt.Errorf("token file %s: %w", path, err)
	}
	return s, nil
}

// ParseStatic is LoadStatic for what a file holds.
func ParseStatic(data []byte) (*Static, error) {
	s := &Static{users: map[[sha256.Size]byte]client.User{}}
	r := csv.NewReader(bytes.NewReader(data))
	r.FieldsPerRecord = -1
	r.TrimLeadingSpace = true
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			return s, nil
		}
		if err != nil {
			return nil, err
		}
		line, _ := r.FieldPos(0)
		if len(record) < 3 {
			return nil, fmt.Errorf("line %d: must have at least 3 columns (token, user name, user uid), found %d", line, len(record))
		}
		if record[0] == "" {
			continue
		}
		user := client.User{Name: record[1], UID: record[2]}
		if len(record) >= 4 && record[3] != "" {
			user.Groups = strings.Split(record[3], ",")
		}
		s.users[sha256.Sum256([]byte(record[0]))] = user
	}
}

// Verify implements Verifier. Finding a hash tells nothing of the tokens by the time that it takes.
func (s *Static) Verify(_ context.Context, token string) (client.User, bool, error) {
	user, ok := s.users[sha256.Sum256([]byte(token))]
	return user, ok, nil
}
