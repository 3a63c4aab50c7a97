package core

import "strings"

// imageTag gives the tag of an image reference: "latest" where it names neither tag nor digest,
// and "" where it names only a digest or is no image reference at all.
func imageTag(image string) string {
	name, digest, digested := strings.Cut(image, "@")
	tag := ""
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		name, tag = name[:colon], name[colon+1:]
		if !isImageTag(tag) {
			return ""
		}
	}
	switch {
	case !isRepository(name) || digested && !isDigest(digest):
		return ""
	case tag == "" && !digested:
		return "latest"
	}
	return tag
}

// isRepository tells whether name is a path of lower-case components, perhaps after a registry.
func isRepository(name string) bool {
	if len(name) > 255 {
		return false
	}
	if first, rest, ok := strings.Cut(name, "/"); ok && isRegistry(first) {
		name = rest
	}
	for component := range strings.SplitSeq(name, "/") {
		if !isPathComponent(component) {
			return false
		}
	}
	return true
}

// isRegistry tells a host from the first component of a path, as clients have always done.
func isRegistry(host string) bool {
	if host != "localhost" && !strings.ContainsAny(host, ".:") && strings.ToLower(host) == host {
		return false
	}
	for i := range len(host) {
		if c := host[i]; !isAlphanumeric(c|0x20) && !strings.ContainsRune(".:-[]", rune(c)) {
			return false
		}
	}
	return true
}

// isPathComponent tells whether s is letters and digits, parted by one dot, one or two
// underscores or any number of dashes.
func isPathComponent(s string) bool {
	if s == "" || !isAlphanumeric(s[0]) || !isAlphanumeric(s[len(s)-1]) {
		return false
	}
	for i := 1; i < len(s); i++ {
		if isAlphanumeric(s[i]) {
			continue
		}
		start := i
		for i+1 < len(s) && s[i+1] == s[start] {
			i++
		}
		run := i - start + 1
		if s[start] != '-' && !(s[start] == '.' && run == 1) && !(s[start] == '_' && run <= 2) || !isAlphanumeric(s[i+1]) {
			return false
		}
	}
	return true
}

func isImageTag(s string) bool {
	if s == "" || len(s) > 128 || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && (c < 'A' || c > 'Z') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

// isDigest tells whether s is an algorithm and the hexadecimal sum that belongs to it.
func isDigest(s string) bool {
	algorithm, sum, _ := strings.Cut(s, ":")
	digits := map[string]int{"sha256": 64, "sha384": 96, "sha512": 128}[algorithm]
	if digits == 0 || len(sum) != digits {
		return false
	}
	return strings.Trim(sum, "0123456789abcdef") == ""
}

func isAlphanumeric(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
