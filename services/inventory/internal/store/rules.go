package store

import (
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/check"
)

// Rules hold for every row, at any moment; docs/doctor.md says what to do when one does not.
var Rules = []check.Rule{
	{Name: "certificate-summary", Broken: check.SQL(`SELECT 'certificates/' || fingerprint, 'is summed up as present ' || CAST(present AS TEXT) || ', served ' || CAST(served AS TEXT) || ', replaced ' || CAST(replaced AS TEXT) || ', which is not what the rest says'
		FROM certificate WHERE present <> ` + isPresent + ` OR served <> ` + isServed + ` OR replaced <> ` + isReplaced + ` ORDER BY fingerprint`)},
	{Name: "sighting-known", Broken: check.SQL(`SELECT 'certificates/' || s.fingerprint, 'is seen on ' || min(s.host) || ' and is not known' FROM sighting s
		LEFT JOIN certificate c ON c.fingerprint = s.fingerprint WHERE c.fingerprint IS NULL GROUP BY s.fingerprint ORDER BY 1`)},
	{Name: "issued-once", Broken: check.SQL(`SELECT 'requests/' || request, 'has ended in ' || CAST(count(*) AS TEXT) || ' certificates, one of them ' || min(fingerprint) FROM certificate
		WHERE issued > 0 AND request <> '' GROUP BY request HAVING count(*) > 1 ORDER BY 1`)},
	{Name: "issued-for", Broken: check.SQL(`SELECT 'certificates/' || fingerprint, 'was issued for no request or identity' FROM certificate
		WHERE issued > 0 AND (request = '' OR identity = '') ORDER BY fingerprint`)},
	{Name: "assignment-known", Broken: check.SQL(`SELECT 'assignments/' || g.assignment, 'has generations and no sum of them' FROM generation g
		LEFT JOIN assignment a ON a.id = g.assignment WHERE a.id IS NULL GROUP BY g.assignment ORDER BY 1`)},
	{Name: "judgement-overdue", Broken: check.SQL(`SELECT subject, 'was to be looked at more than ten minutes ago' FROM due WHERE at < $1 ORDER BY at`, 10*time.Minute)},
}
