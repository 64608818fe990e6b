// Package finding holds the rules by which the inventory says that something is wrong.
//
// It guarantees that a judgement depends on its arguments alone: it asks nobody, least of all whoever should have acted, so
// it holds when the scheduler is what has stopped. It also says when a judgement may next change by the passing of time.
// Gathering the input, and storing what was found, is left to others.
//
//	rule                    subject               severity
//	expiring                certificates/<f>      warning; critical in the last 7 days or twentieth of the life; info in files only
//	expired                 certificates/<f>      critical
//	served_is_not_assigned  targets/<host>/<t>    critical
//	unknown_issuer          certificates/<f>      warning; info in files only
//	weak_key                certificates/<f>      warning; info in files only
//	no_owner                certificates/<f>      warning; info in files only
//	overdue                 certificates/<f>      warning; critical once expiring
//	host_silent             hosts/<h>             warning
//	revoked                 certificates/<f>      critical
package finding

import (
	"fmt"
	"strings"
	"time"
)

// Rule names what is wrong.
type Rule string

// The rules.
const (
	Expiring            Rule = "expiring"
	Expired             Rule = "expired"
	ServedIsNotAssigned Rule = "served_is_not_assigned"
	UnknownIssuer       Rule = "unknown_issuer"
	WeakKey             Rule = "weak_key"
	NoOwner             Rule = "no_owner"
	Overdue             Rule = "overdue"
	HostSilent          Rule = "host_silent"
	Revoked             Rule = "revoked"
)

// Rules are all of them.
var Rules = []Rule{Expiring, Expired, ServedIsNotAssigned, UnknownIssuer, WeakKey, NoOwner, Overdue, HostSilent, Revoked}

// Severity orders findings; a greater one is worse.
type Severity int

// The severities.
const (
	Info     Severity = 1 // good to know
	Warning  Severity = 2 // act soon
	Critical Severity = 3 // act now
)

// Severities are all of them.
var Severities = []Severity{Info, Warning, Critical}

// String is "info", "warning" or "critical".
func (s Severity) String() string {
	return [...]string{"unspecified", "info", "warning", "critical"}[max(0, min(int(s), 3))]
}

// Finding is something wrong with the subject that was judged. Message says what is wrong and what to do; it does not change
// while nothing else does.
type Finding struct {
	Rule     Rule
	Severity Severity
	Message  string
}

// Limits are the thresholds that are a matter of taste.
type Limits struct {
	// Expiring is the longest time before the end at which a certificate counts as expiring; for one that lives less than
	// five times as long it is a fifth of its life. CA certificates get six times as long.
	Expiring time.Duration
	// Critical is the longest time before the end at which that becomes critical, or a twentieth of the life.
	Critical time.Duration
	// HostSilent is how long a host may say nothing.
	HostSilent time.Duration
}

// The kinds of subjects.
const (
	Certificates = "certificates"
	Hosts        = "hosts"
	Targets      = "targets"
)

// CertificateSubject names a certificate.
func CertificateSubject(fingerprint string) string { return Certificates + "/" + fingerprint }

// HostSubject names a host.
func HostSubject(name string) string { return Hosts + "/" + name }

// TargetSubject names a target.
func TargetSubject(host, target string) string { return Targets + "/" + host + "/" + target }

// SplitSubject takes a subject apart: kind and name, which for a target is "host/target".
func SplitSubject(subject string) (kind, name string) {
	kind, name, _ = strings.Cut(subject, "/")
	return kind, name
}

// earliest gives the first of the moments that is after now, zero when none is.
func earliest(now time.Time, moments ...time.Time) time.Time {
	var first time.Time
	for _, m := range moments {
		if m.After(now) && (first.IsZero() || m.Before(first)) {
			first = m
		}
	}
	return first
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

func short(fingerprint string) string { return fingerprint[:min(len(fingerprint), 16)] }

// named shows the first names and how many more there are.
func named(names []string) string {
	const shown = 3
	if len(names) == 0 {
		return "without names"
	}
	if len(names) <= shown {
		return "for " + strings.Join(names, ", ")
	}
	return fmt.Sprintf("for %s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}
