package store

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/check"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/revocation"
)

// Rules hold for every row, at any moment; docs/doctor.md says what to do when one does not.
var Rules = []check.Rule{
	{Name: "request-ended", Broken: check.SQL(`SELECT 'requests/' || id, 'is ' || state || ' and is still to be worked on' FROM request
		WHERE state IN ('issued', 'refused', 'cancelled') AND next_attempt <> 0 ORDER BY id`)},
	{Name: "request-abandoned", Broken: check.SQL(`SELECT 'requests/' || id, 'is ' || state || ' and nothing will ever bring it on' FROM request
		WHERE state NOT IN ('issued', 'refused', 'cancelled') AND next_attempt = 0 ORDER BY id`)},
	{Name: "request-overdue", Broken: check.SQL(`SELECT 'requests/' || id, 'is ' || state || ' and was due more than ten minutes ago' FROM request
		WHERE next_attempt > 0 AND next_attempt < $1 AND claimed_until < $1 ORDER BY id`, 10*time.Minute)},
	{Name: "intent-open", Broken: check.SQL(`SELECT 'requests/' || id, 'is ' || state || ' for more than an hour: what the CA made of it is not known. ' || message FROM request
		WHERE state IN ('ordering', 'finalizing') AND updated < $1 ORDER BY id`, time.Hour)},
	{Name: "issued-once", Broken: check.SQL(`SELECT 'requests/' || r.id, 'is ' || r.state || ' with certificate "' || r.fingerprint || '", the store has "' || coalesce(k.fingerprint, '') || '"'
		FROM request r LEFT JOIN certificate k ON k.request = r.id
		WHERE (r.state = 'issued') <> (k.fingerprint IS NOT NULL) OR r.fingerprint <> coalesce(k.fingerprint, '') ORDER BY r.id`)},
	{Name: "certificate-of-request", Broken: check.SQL(`SELECT 'certificates/' || k.fingerprint, 'belongs to request ' || k.request || ', which is not there' FROM certificate k
		LEFT JOIN request r ON r.id = k.request WHERE r.id IS NULL ORDER BY k.fingerprint`)},
	{Name: "serial-once", Broken: check.SQL(`SELECT 'certificates/' || min(fingerprint), 'and ' || max(fingerprint) || ' have the serial number ' || serial || ' of one authority' FROM certificate
		GROUP BY authority_uid, serial HAVING count(*) > 1 ORDER BY 1`)},
	{Name: "order-of-request", Broken: check.SQL(`SELECT 'requests/' || id, 'is ' || state || ' without an order' FROM request
		WHERE state IN ('ordered', 'authorized', 'finalizing') AND order_url = '' ORDER BY id`)},
	{Name: "order-once", Broken: check.SQL(`SELECT 'requests/' || min(id), 'and ' || max(id) || ' have the order ' || order_url FROM request
		WHERE order_url <> '' AND state NOT IN ('refused', 'cancelled') GROUP BY order_url HAVING count(*) > 1 ORDER BY 1`)},
	{Name: "csr-kept", Broken: check.SQL(`SELECT 'requests/' || id, 'is ' || state || ' without its CSR' FROM request
		WHERE state NOT IN ('issued', 'refused', 'cancelled') AND csr IS NULL ORDER BY id`)},
	{Name: "authority-of-request", Broken: check.SQL(`SELECT 'requests/' || r.id, 'is ' || r.state || ' and its authority ' || r.authority || ' is not there' FROM request r
		LEFT JOIN authority a ON a.uid = r.authority_uid WHERE r.state NOT IN ('issued', 'refused', 'cancelled') AND a.uid IS NULL ORDER BY r.id`)},
	{Name: "chain-kept", Broken: check.SQL(`SELECT 'certificates/' || k.fingerprint, 'has lost its chain' FROM certificate k
		LEFT JOIN chain c ON c.id = k.chain WHERE c.id IS NULL ORDER BY k.fingerprint`)},
	{Name: "challenge-left", Broken: check.SQL(`SELECT 'challenges/' || h.id, 'is ' || h.state || ' while its request ' || h.request || ' is ' || r.state FROM challenge h
		JOIN request r ON r.id = h.request WHERE r.state IN ('issued', 'refused', 'cancelled') AND h.state <> 'withdrawn' ORDER BY h.id`)},
	{Name: "claim", Broken: check.SQL(`SELECT 'requests/' || id, 'is held by ' || claimed_by || ' for more than an hour to come' FROM request
		WHERE claimed_until > $1 OR fence < 0 ORDER BY id`, -time.Hour)},
	{Name: "revocation-listed", Broken: check.SQL(`SELECT 'certificates/' || r.fingerprint, 'was revoked more than ten minutes ago and is on no CRL yet' FROM revocation r
		JOIN authority a ON a.uid = r.authority_uid WHERE r.listed = 0 AND r.revoked < $1 ORDER BY r.fingerprint`, 10*time.Minute)},
	{Name: "revocation-of-certificate", Broken: check.SQL(`SELECT 'certificates/' || r.fingerprint, 'is revoked as another than was issued: serial number ' || r.serial FROM revocation r
		LEFT JOIN certificate k ON k.fingerprint = r.fingerprint AND k.serial = r.serial AND k.authority_uid = r.authority_uid WHERE k.fingerprint IS NULL ORDER BY r.fingerprint`)},
	{Name: "crl-late", Broken: check.SQL(`SELECT 'authorities/' || a.name, 'has no CRL, or one that should have been made anew by now' FROM authority a
		WHERE a.kind = 'internal' AND (a.created < $1 AND (SELECT count(*) FROM crl l WHERE l.authority_uid = a.uid) < 2 OR EXISTS (SELECT 1 FROM crl l
		WHERE l.authority_uid = a.uid AND (NOT l.root AND l.this_update < $2 OR l.root AND l.this_update < $3))) ORDER BY a.name`,
		10*time.Minute, revocation.TermOf(false).Remade+time.Hour, revocation.TermOf(true).Remade+24*time.Hour)},
	{Name: "crl-complete", Broken: incomplete},
	{Name: "certificate-bytes", Full: true, Broken: otherBytes},
}

// incomplete finds CRLs that their CA has not signed so, or that do not have what was revoked.
func incomplete(ctx context.Context, tx db.Tx, _ time.Time, limit int) ([]check.Violation, error) {
	rows, err := tx.Query(ctx, `SELECT l.authority, l.authority_uid, l.root, l.number, l.der, c.ders FROM crl l JOIN authority a ON a.uid = l.authority_uid
		JOIN chain c ON c.id = a.chain ORDER BY l.authority, l.root`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []check.Violation
	on := map[string]map[string]int{} // reasons by serial number, by authority
	for rows.Next() {
		var name, uid string
		var root bool
		var number int64
		var der, chain []byte
		if err := rows.Scan(&name, &uid, &root, &number, &der, &chain); err != nil {
			return nil, err
		}
		list, err := signedList(der, chain, root)
		if err == nil && list.Number.Cmp(big.NewInt(number)) != 0 {
			err = fmt.Errorf("its number is %s and not %d", list.Number, number)
		}
		if err != nil {
			all = append(all, check.Violation{Subject: "authorities/" + name, Message: "has a CRL that is not sound: " + err.Error()})
		}
		if on[uid] == nil {
			on[uid] = map[string]int{}
		}
		for _, e := range list.RevokedCertificateEntries {
			on[uid][e.SerialNumber.Text(16)] = e.ReasonCode
		}
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	missing, err := missing(ctx, tx, on)
	all = append(all, missing...)
	return all[:min(len(all), limit)], err
}

// signedList reads a list that one of the chain has signed; it is empty, not nil, when that is not so.
func signedList(der, chain []byte, root bool) (*x509.RevocationList, error) {
	none := &x509.RevocationList{Number: new(big.Int)}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return none, err
	}
	ders, err := splitChain(chain)
	if err != nil {
		return none, err
	}
	signer := ders[0]
	if root {
		signer = ders[len(ders)-1]
	}
	ca, err := x509.ParseCertificate(signer)
	if err != nil {
		return none, err
	}
	if err := list.CheckSignatureFrom(ca); err != nil {
		return none, err
	}
	return list, nil
}

func missing(ctx context.Context, tx db.Tx, on map[string]map[string]int) ([]check.Violation, error) {
	rows, err := tx.Query(ctx, `SELECT fingerprint, authority_uid, serial, reason FROM revocation WHERE listed > 0 AND last = 0 ORDER BY fingerprint`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []check.Violation
	for rows.Next() {
		var fingerprint, uid, serial string
		var reason int
		if err := rows.Scan(&fingerprint, &uid, &serial, &reason); err != nil {
			return nil, err
		}
		list, known := on[uid]
		if !known { // the authority was deleted
			continue
		}
		if told, there := list[serial]; !there || told != reason {
			all = append(all, check.Violation{Subject: "certificates/" + fingerprint, Message: "was revoked and its authority's CRL does not have it, or for another reason"})
		}
	}
	return all, rows.Err()
}

// otherBytes finds certificates that are not what their row says.
func otherBytes(ctx context.Context, tx db.Tx, _ time.Time, limit int) ([]check.Violation, error) {
	rows, err := tx.Query(ctx, `SELECT fingerprint, serial, der FROM certificate ORDER BY fingerprint`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []check.Violation
	for rows.Next() && len(all) < limit {
		var fingerprint, serial string
		var der []byte
		if err := rows.Scan(&fingerprint, &serial, &der); err != nil {
			return nil, err
		}
		sum := sha256.Sum256(der)
		cert, err := x509.ParseCertificate(der)
		switch {
		case err != nil:
			all = append(all, check.Violation{Subject: "certificates/" + fingerprint, Message: "cannot be read: " + err.Error()})
		case hex.EncodeToString(sum[:]) != fingerprint || cert.SerialNumber.Text(16) != serial:
			all = append(all, check.Violation{Subject: "certificates/" + fingerprint, Message: fmt.Sprintf("is stored with serial number %s and is %x with serial number %x", serial, sum, cert.SerialNumber)})
		}
	}
	return all, rows.Err()
}
