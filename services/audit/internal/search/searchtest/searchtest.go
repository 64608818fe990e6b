// Package searchtest makes random records and filters that have much in common, for tests that compare the index with
// record.Filter.Match.
package searchtest

import (
	"math/rand/v2"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
)

// What records say.
var (
	Types    = []string{"issuer.request.issued", "issuer.request.refused", "issuer.requests.x", "deployer.agent.locked", "issuer.request", "issuer/x"}
	Subjects = []string{"requests/a", "requests/a/", "requests/a/b", "requests/aa", "requests0", "agents/w\u00e4b", "", "requests/\U0001F600/x"}
	Results  = []string{"", "succeeded", "refused", "failed"}
	Traces   = []string{"", "t1", "t2"}
	Actors   = []string{"spiffe://a/operator/ann", "spiffe://a/operator/anna", "anonymous"}
)

var (
	types    = []string{"", "issuer.", "issuer.request.", "issuer.request.issued", "issuer.request", "deployer.", "."}
	subjects = []string{"", "requests/", "requests/a/", "requests/a", "agents/", "agents/w\u00e4b", "/", "requests/\U0001F600/", "requests"}
)

// Filter is a random one; its times are some of the first 20 half microseconds after 1,800,000,000 s.
func Filter(rnd *rand.Rand) record.Filter {
	pick := func(list []string) string { return list[rnd.IntN(len(list))] }
	f := record.Filter{Type: pick(types), Subject: pick(subjects)}
	for _, set := range []func(){
		func() { f.Type = "" },
		func() { f.Subject = "" },
		func() { f.Result = eventv1.Result(rnd.IntN(4)) },
		func() { f.TraceID = pick(Traces) },
		func() { f.Actor = pick(Actors) },
		func() { f.From = time.Unix(1_800_000_000, int64(rnd.IntN(20))*500) },
		func() { f.To = time.Unix(1_800_000_000, int64(rnd.IntN(20))*500) },
	} {
		if rnd.IntN(3) == 0 {
			set()
		}
	}
	return f
}
