/** The few XML forms of the S3 protocol that the test server speaks. */
import type { StoredObject } from "./s3-server.ts";

const NS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"';
const HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n';

export function errorXml(code: string, message: string): string {
  return `${HEAD}<Error><Code>${escape(code)}</Code><Message>${escape(message)}</Message></Error>`;
}

export function initiateResult(bucket: string, key: string, id: string): string {
  const inner = `<Bucket>${escape(bucket)}</Bucket><Key>${escape(key)}</Key><UploadId>${id}</UploadId>`;
  return `${HEAD}<InitiateMultipartUploadResult ${NS}>${inner}</InitiateMultipartUploadResult>`;
}

export function completeResult(bucket: string, key: string, etag: string): string {
  const inner = `<Bucket>${escape(bucket)}</Bucket><Key>${escape(key)}</Key><ETag>${escape(etag)}</ETag>`;
  return `${HEAD}<CompleteMultipartUploadResult ${NS}>${inner}</CompleteMultipartUploadResult>`;
}

export function deleteResult(): string {
  return `${HEAD}<DeleteResult ${NS}></DeleteResult>`;
}

export function listXml(bucket: string, prefix: string, page: [string, StoredObject][], token: string | null): string {
  const contents = page.map(
    ([key, object]) =>
      `<Contents><Key>${escape(key)}</Key><LastModified>${new Date(object.modifiedMs).toISOString()}</LastModified>` +
      `<ETag>${escape(object.etag)}</ETag><Size>${object.body.length}</Size><StorageClass>STANDARD</StorageClass></Contents>`,
  );
  const next = token === null ? "" : `<NextContinuationToken>${escape(token)}</NextContinuationToken>`;
  return (
    `${HEAD}<ListBucketResult ${NS}><Name>${escape(bucket)}</Name><Prefix>${escape(prefix)}</Prefix>` +
    `<KeyCount>${page.length}</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>${token !== null}</IsTruncated>` +
    `${next}${contents.join("")}</ListBucketResult>`
  );
}

export function uploadsXml(bucket: string, uploads: readonly { key: string; id: string; begunMs: number }[]): string {
  const list = uploads.map(
    ({ key, id, begunMs }) =>
      `<Upload><Key>${escape(key)}</Key><UploadId>${id}</UploadId>` +
      `<Initiated>${new Date(begunMs).toISOString()}</Initiated></Upload>`,
  );
  return (
    `${HEAD}<ListMultipartUploadsResult ${NS}><Bucket>${escape(bucket)}</Bucket>` +
    `<IsTruncated>false</IsTruncated>${list.join("")}</ListMultipartUploadsResult>`
  );
}

export function parseDelete(xml: string): string[] {
  return [...xml.matchAll(/<Key>([^<]*)<\/Key>/g)].map((match) => unescape(match[1] ?? ""));
}

export function parseParts(xml: string): { number: number; etag: string }[] {
  return [...xml.matchAll(/<Part>(.*?)<\/Part>/gs)].map((match) => ({
    number: Number(/<PartNumber>(\d+)</.exec(match[1] ?? "")?.[1]),
    etag: unescape(/<ETag>([^<]*)</.exec(match[1] ?? "")?.[1] ?? ""),
  }));
}

function escape(text: string): string {
  return text.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);
}

function unescape(text: string): string {
  const named: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" };
  return text.replace(/&(#x?[0-9a-fA-F]+|\w+);/g, (_, name: string) => {
    if (name.startsWith("#x")) return String.fromCodePoint(Number.parseInt(name.slice(2), 16));
    return name.startsWith("#") ? String.fromCodePoint(Number(name.slice(1))) : (named[name] ?? "");
  });
}
