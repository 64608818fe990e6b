package scan

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
)

const (
	maxConfig      = 4 << 20
	maxConfigFiles = 500
	maxInclude     = 8
	maxReferences  = 5000
)

// referenced lists the certificate files and folders that the servers'
// configurations name. What cannot be read or understood is passed over.
func (s *Scanner) referenced(ctx context.Context) []string {
	var found []string
	if s.Nginx != "" {
		found = append(found, nginxReferences(ctx, s.Nginx)...)
	}
	if s.HAProxy != "" {
		found = append(found, haproxyReferences(s.HAProxy)...)
	}
	slices.Sort(found)
	found = slices.Compact(found)
	return found[:min(len(found), maxReferences)]
}

var nginxDirectives = []string{"ssl_certificate", "ssl_client_certificate", "ssl_trusted_certificate", "proxy_ssl_certificate", "grpc_ssl_certificate", "uwsgi_ssl_certificate"}

func nginxReferences(ctx context.Context, main string) []string {
	base := filepath.Dir(main)
	var found []string
	seen := map[string]bool{}
	var read func(path string, depth int)
	read = func(path string, depth int) {
		if seen[path] || len(seen) >= maxConfigFiles || depth > maxInclude || ctx.Err() != nil {
			return
		}
		seen[path] = true
		data, err := disk.ReadPath(path, maxConfig)
		if err != nil {
			return
		}
		for _, d := range nginxConfig(string(data)) {
			switch {
			case len(d) < 2:
			case d[0] == "include":
				files, err := filepath.Glob(under(base, d[1]))
				if err != nil {
					continue
				}
				for _, f := range files {
					read(f, depth+1)
				}
			case slices.Contains(nginxDirectives, d[0]) && len(found) < maxReferences && !strings.ContainsAny(d[1], "$:"):
				found = append(found, under(base, d[1])) // neither a variable nor data: nor engine:
			}
		}
	}
	read(main, 0)
	return found
}

func under(base, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(base, path)
}

// nginxConfig splits a configuration into its directives, each a list of words;
// blocks are taken apart.
func nginxConfig(text string) [][]string {
	var all [][]string
	var words []string
	var word strings.Builder
	quoted, inWord := byte(0), false
	endWord := func() {
		if inWord {
			words = append(words, word.String())
			word.Reset()
			inWord = false
		}
	}
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case quoted != 0 && c == '\\' && i+1 < len(text), quoted == 0 && c == '\\' && i+1 < len(text):
			i++
			word.WriteByte(text[i])
			inWord = true
		case quoted != 0 && c == quoted:
			quoted = 0
		case quoted != 0:
			word.WriteByte(c)
		case c == '#' && !inWord:
			for i < len(text) && text[i] != '\n' {
				i++
			}
		case (c == '"' || c == '\'') && !inWord:
			quoted, inWord = c, true
		case c == ';' || c == '{' || c == '}':
			endWord()
			if len(words) > 0 {
				all = append(all, words)
			}
			words = nil
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			endWord()
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	return all
}

func haproxyReferences(main string) []string {
	files := []string{main}
	if matches, err := filepath.Glob(filepath.Join(main, "*.cfg")); err == nil { // a folder of files
		files = append(files, matches...)
	}
	var found []string
	for _, f := range files[:min(len(files), maxConfigFiles)] {
		data, err := disk.ReadPath(f, maxConfig)
		if err != nil {
			continue
		}
		crts, lists := haproxyConfig(string(data))
		found = append(found, crts...)
		for _, l := range lists {
			if data, err := disk.ReadPath(l, maxConfig); err == nil {
				found = append(found, crtList(string(data))...)
			}
		}
	}
	return slices.DeleteFunc(found, func(p string) bool { return !filepath.IsAbs(p) })
}

// haproxyConfig gives the certificate files and folders, and the lists of such.
func haproxyConfig(text string) (crts, lists []string) {
	crtBase, caBase := "", ""
	for line := range strings.Lines(text) {
		words := haproxyWords(line)
		if len(words) == 2 {
			switch words[0] {
			case "crt-base":
				crtBase = words[1]
			case "ca-base":
				caBase = words[1]
			}
		}
		for i := 0; i+1 < len(words) && len(crts) < maxReferences; i++ {
			switch words[i] {
			case "crt":
				crts = append(crts, under(crtBase, words[i+1]))
			case "ca-file", "ca-verify-file":
				crts = append(crts, under(caBase, words[i+1]))
			case "crt-list":
				lists = append(lists, under(crtBase, words[i+1]))
			}
		}
	}
	return crts, lists
}

// haproxyWords splits a line as HAProxy does: blanks, quotes, backslashes, comments.
func haproxyWords(line string) []string {
	var words []string
	var word strings.Builder
	quoted, inWord := byte(0), false
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case c == '\\' && quoted != '\'' && i+1 < len(line):
			i++
			word.WriteByte(line[i])
			inWord = true
		case quoted != 0 && c == quoted:
			quoted = 0
		case quoted != 0:
			word.WriteByte(c)
		case c == '"' || c == '\'':
			quoted, inWord = c, true
		case c == '#', c == ' ' || c == '\t' || c == '\r' || c == '\n':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
			if c == '#' {
				return words
			}
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if inWord {
		words = append(words, word.String())
	}
	return words
}

// crtList gives the files of a HAProxy crt-list: the first word of each line.
func crtList(text string) []string {
	var found []string
	for line := range strings.Lines(text) {
		if words := haproxyWords(line); len(words) > 0 && len(found) < maxReferences {
			found = append(found, words[0])
		}
	}
	return found
}
