package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/sallyport-pki/sallyport/auditlog"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
)

func (v *view) storeCheck(name string) Check {
	s := v.stores[name]
	title := name + " store"
	if s.err != nil {
		return unseen(title, s.err)
	}
	var found []Problem
	for _, x := range s.violations {
		found = append(found, Problem{Rule: x.GetRule(), Service: name, Subject: x.GetSubject(), Message: x.GetMessage()})
	}
	return judged(title, fmt.Sprintf("%d rules, %d events", s.rules, s.events), found)
}

// eventsCheck wants every event in the log, and no record without its event. That no event has two records is a rule of the
// audit service's own store.
func (v *view) eventsCheck(ctx context.Context, c Config) Check {
	const title = "events recorded"
	total := 0
	var found []Problem
	for _, name := range v.services {
		s := v.stores[name]
		if s.err != nil || s.findErr != nil {
			return unseen(title, s.err, s.findErr)
		}
		total += s.events
		for _, e := range s.missing {
			where := "JetStream has it"
			if !e.GetPublished() {
				where = "it is not published"
			}
			found = append(found, Problem{Rule: "event-recorded", Service: name, Subject: "events/" + e.GetId(),
				Message: fmt.Sprintf("was committed at %s and has no record in the audit log; %s", e.GetTime().AsTime().Format("2006-01-02T15:04:05Z"), where)})
		}
	}
	if v.headErr != nil {
		return unseen(title, v.headErr)
	}
	if size, err := headSize(v.head.GetCheckpoint()); err != nil {
		return unseen(title, err)
	} else if uint64(total) < size {
		// A store forgets events after some weeks; then only the records themselves tell, one by one.
		young, err := v.young(ctx, c)
		if err != nil {
			return unseen(title, err)
		}
		if !young {
			return judged(title, fmt.Sprintf("%d events, one record each", total), found)
		}
		found = append(found, Problem{Rule: "record-of-event", Service: "audit", Subject: "records",
			Message: fmt.Sprintf("the audit log has %d records, all stores together hold %d events: some store has lost events, as after a restore from a backup", size, total)})
	}
	return judged(title, fmt.Sprintf("%d events, one record each", total), found)
}

// young says that the log's first record is of an event that its store must still hold.
func (v *view) young(ctx context.Context, c Config) (bool, error) {
	r, err := c.Services.Audit.GetRecord(ctx, &auditv1.GetRecordRequest{})
	if err != nil {
		return false, err
	}
	first, err := auditlog.ParseRecord(r.GetRecord().GetJson())
	return c.Now().Sub(first.Time) < held, err
}

// consumersCheck keeps, as the subject, how far a consumer is: one that moves on is another subject at the next look.
func (v *view) consumersCheck() Check {
	const title = "events consumed"
	n, waiting := 0, uint64(0)
	var found []Problem
	for _, name := range v.services {
		s := v.stores[name]
		if s.err != nil {
			return unseen(title, s.err)
		}
		for _, c := range s.consumers {
			n++
			waiting += c.GetWaiting()
			if c.GetWaiting() > 0 {
				found = append(found, Problem{Rule: "consumer-lag", Service: name, Subject: fmt.Sprintf("consumers/%s@%d", c.GetName(), c.GetFinished()),
					Message: fmt.Sprintf("%d messages wait and none is finished", c.GetWaiting())})
			}
		}
	}
	return judged(title, fmt.Sprintf("%d consumers, %d messages wait for them", n, waiting), found)
}

// wish is what the deployer's request ids stand for.
type wish struct {
	assignment string
	generation int64
	attempt    int32
}

// parseWish reads "<assignment>-<generation>-<attempt>"; ok is false for a request that somebody else submitted.
func parseWish(id string) (w wish, ok bool) {
	parts := strings.Split(id, "-")
	const uuidParts = 5
	if len(parts) != uuidParts+2 {
		return w, false
	}
	generation, err := strconv.ParseInt(parts[uuidParts], 10, 64)
	attempt, err2 := strconv.ParseInt(parts[uuidParts+1], 10, 32)
	if err != nil || err2 != nil {
		return w, false
	}
	return wish{strings.Join(parts[:uuidParts], "-"), generation, int32(attempt)}, true
}

func unfinished(s issuerv1.RequestState) bool {
	return s != issuerv1.RequestState_REQUEST_STATE_ISSUED && s != issuerv1.RequestState_REQUEST_STATE_REFUSED && s != issuerv1.RequestState_REQUEST_STATE_CANCELLED
}

// requestsCheck compares the deployer's wishes with the issuer's requests.
func (v *view) requestsCheck() Check {
	const title = "wishes and requests"
	if err := errors.Join(v.listErr["deployer"], v.listErr["issuer"]); err != nil {
		return unseen(title, v.listErr["deployer"], v.listErr["issuer"])
	}
	return judged(title, fmt.Sprintf("%d assignments, %d requests", len(v.assignments), len(v.requests)), judgeRequests(v.assignments, v.requests))
}

func judgeRequests(assignments []*deployerv1.AssignmentStatus, requests []*issuerv1.Request) []Problem {
	var found []Problem
	byID, byRequest := map[string]*deployerv1.AssignmentStatus{}, map[string]*issuerv1.Request{}
	for _, a := range assignments {
		byID[a.GetId()] = a
	}
	for _, r := range requests {
		byRequest[r.GetId()] = r
		w, ours := parseWish(r.GetId())
		if !ours {
			continue
		}
		tell := func(rule, format string, args ...any) {
			found = append(found, Problem{Rule: rule, Service: "issuer", Subject: "requests/" + r.GetId(), Message: fmt.Sprintf(format, args...)})
		}
		a := byID[w.assignment]
		switch {
		case a == nil:
			tell("request-of-wish", "is for an assignment that the deployer does not have")
		case w.generation > a.GetGeneration() || w.generation == a.GetGeneration() && w.attempt > a.GetAttempt():
			tell("request-of-wish", "is for generation %d, attempt %d; the deployer is at generation %d, attempt %d", w.generation, w.attempt, a.GetGeneration(), a.GetAttempt())
		case unfinished(r.GetState()) && (a.GetRequestId() != r.GetId() || a.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_REQUESTED):
			tell("request-wanted", "is still %s, but its assignment is %s and does not wait for it", word(r.GetState().String(), "REQUEST_STATE_"), word(a.GetState().String(), "ASSIGNMENT_STATE_"))
		}
	}
	for _, a := range assignments {
		if a.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_REQUESTED {
			continue
		}
		tell := func(format string, args ...any) {
			found = append(found, Problem{Rule: "wish-requested", Service: "deployer", Subject: "assignments/" + a.GetId(), Message: fmt.Sprintf(format, args...)})
		}
		r := byRequest[a.GetRequestId()]
		switch {
		case r == nil:
			tell("waits for request %s, which the issuer does not have. %s", a.GetRequestId(), a.GetMessage())
		case !unfinished(r.GetState()):
			tell("waits for request %s, which is %s", a.GetRequestId(), word(r.GetState().String(), "REQUEST_STATE_"))
		}
	}
	return found
}

func word(name, prefix string) string { return strings.ToLower(strings.TrimPrefix(name, prefix)) }

// certificatesCheck compares what was issued with what is assigned and with what the inventory knows.
func (v *view) certificatesCheck() Check {
	const title = "certificates"
	if err := errors.Join(v.listErr["deployer"], v.listErr["issuer"], v.listErr["inventory"]); err != nil {
		return unseen(title, v.listErr["deployer"], v.listErr["issuer"], v.listErr["inventory"])
	}
	issued := 0
	for _, r := range v.requests {
		if r.GetState() == issuerv1.RequestState_REQUEST_STATE_ISSUED {
			issued++
		}
	}
	return judged(title, fmt.Sprintf("%d issued", issued), judgeCertificates(v.assignments, v.requests, v.certificates))
}

func judgeCertificates(assignments []*deployerv1.AssignmentStatus, requests []*issuerv1.Request, known []*inventoryv1.KnownCertificate) []Problem {
	var found []Problem
	tell := func(rule, service, subject, format string, args ...any) {
		found = append(found, Problem{Rule: rule, Service: service, Subject: subject, Message: fmt.Sprintf(format, args...)})
	}
	inventory := map[string]*inventoryv1.KnownCertificate{}
	for _, k := range known {
		inventory[k.GetCertificate().GetFingerprint()] = k
	}
	issued := map[string]*issuerv1.Request{} // by fingerprint
	states := map[string]issuerv1.RequestState{}
	for _, r := range requests {
		states[r.GetId()] = r.GetState()
		if r.GetState() != issuerv1.RequestState_REQUEST_STATE_ISSUED {
			continue
		}
		f := r.GetFingerprint()
		if other := issued[f]; other != nil {
			tell("certificate-once", "issuer", "certificates/"+f, "was issued for request %s and for %s", other.GetId(), r.GetId())
		}
		issued[f] = r
		if k := inventory[f]; k == nil || k.GetRequestId() != r.GetId() {
			tell("certificate-known", "inventory", "certificates/"+f, "was issued for request %s; the inventory has request %q", r.GetId(), k.GetRequestId())
		}
	}
	for f, k := range inventory {
		if id := k.GetRequestId(); id != "" && issued[f].GetId() != id {
			tell("certificate-issued", "issuer", "certificates/"+f, "was issued for request %s by what the inventory was told; the issuer calls that request %s", id, orNone(states, id))
		}
	}
	holder := map[string]string{}
	for _, a := range assignments {
		f := a.GetFingerprint()
		if f == "" || a.GetState() == deployerv1.AssignmentState_ASSIGNMENT_STATE_WITHDRAWN {
			continue
		}
		subject := "assignments/" + a.GetId()
		if other := holder[f]; other != "" {
			tell("certificate-of-wish", "deployer", subject, "has certificate %s, as has assignment %s", f, other)
		}
		holder[f] = a.GetId()
		r := issued[f]
		if w, ours := parseWish(r.GetId()); r == nil || !ours || w.assignment != a.GetId() || w.generation != a.GetGeneration() {
			tell("certificate-of-wish", "deployer", subject, "has certificate %s in generation %d, which the issuer made for request %q", f, a.GetGeneration(), r.GetId())
		}
	}
	return found
}

func orNone(states map[string]issuerv1.RequestState, id string) string {
	if s, ok := states[id]; ok {
		return word(s.String(), "REQUEST_STATE_")
	}
	return "unknown"
}

// servedCheck compares what the deployer calls served with what the inventory was told.
func (v *view) servedCheck() Check {
	const title = "served"
	if err := errors.Join(v.listErr["deployer"], v.listErr["inventory"]); err != nil {
		return unseen(title, v.listErr["deployer"], v.listErr["inventory"])
	}
	n, found := judgeServed(v.assignments, v.certificates)
	return judged(title, fmt.Sprintf("%d targets", n), found)
}

func judgeServed(assignments []*deployerv1.AssignmentStatus, known []*inventoryv1.KnownCertificate) (int, []Problem) {
	inventory := map[string]*inventoryv1.KnownCertificate{}
	for _, k := range known {
		inventory[k.GetCertificate().GetFingerprint()] = k
	}
	n := 0
	var found []Problem
	for _, a := range assignments {
		if a.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED {
			continue
		}
		n++
		place := a.GetTarget().GetHost() + "/" + a.GetTarget().GetName()
		k := inventory[a.GetFingerprint()]
		if k == nil || !k.GetServed() || !slices.Contains(k.GetAssignedTo(), place) {
			found = append(found, Problem{Rule: "served-seen", Service: "inventory", Subject: "assignments/" + a.GetId(),
				Message: fmt.Sprintf("serves %s at %s by what the deployer was told; the inventory knows it %t, served %t, assigned to %v", a.GetFingerprint(), place, k != nil, k.GetServed(), k.GetAssignedTo())})
		}
	}
	return n, found
}

func headSize(note string) (uint64, error) {
	lines := strings.SplitN(note, "\n", 3)
	if len(lines) < 3 {
		return 0, errors.New("the audit service's checkpoint is no checkpoint")
	}
	n, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil {
		return 0, errors.New("the audit service's checkpoint is no checkpoint")
	}
	return n, nil
}
