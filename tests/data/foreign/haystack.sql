-- Made by pgvector-haystack 8.1.2, on pgvector 0.8.5; scripts/foreign-tables makes it again.
CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE public.haystack_documents (
    id character varying(128) NOT NULL,
    embedding public.vector(8),
    content text,
    blob_data bytea,
    blob_meta jsonb,
    blob_mime_type character varying(255),
    meta jsonb
);

INSERT INTO public.haystack_documents VALUES ('00000001-0000-4000-8000-000000000000', '[0.5,-0.375,-0.625,1,-0.75,-0.375,0.25,0.625]', 'a heron waits', NULL, NULL, NULL, '{"n": 0, "kind": "bird"}');
INSERT INTO public.haystack_documents VALUES ('00000002-0000-4000-8000-000000000000', '[0.25,0.75,-1,-0.25,0.125,-0.125,-0.25,-0.25]', 'the tide turns', NULL, NULL, NULL, '{"n": 1, "kind": "sea"}');
INSERT INTO public.haystack_documents VALUES ('00000003-0000-4000-8000-000000000000', '[-1,-0.875,0.125,0,1,-0.5,0.75,-0.5]', 'rain on slate', NULL, NULL, NULL, '{"n": 2, "kind": "sky"}');
INSERT INTO public.haystack_documents VALUES ('00000004-0000-4000-8000-000000000000', '[-0.75,-0.625,-0.25,-0.625,0.875,0.625,0.625,-0.125]', 'seven bells', NULL, NULL, NULL, '{"n": 3, "kind": "sea"}');
INSERT INTO public.haystack_documents VALUES ('00000005-0000-4000-8000-000000000000', '[-1,-0.5,-0.125,0.25,-0.125,0.25,-0.25,0.25]', 'salt and rope', NULL, NULL, NULL, '{"n": 4, "kind": "sea"}');
INSERT INTO public.haystack_documents VALUES ('bare', NULL, 'nothing yet', NULL, NULL, NULL, '{}');

ALTER TABLE ONLY public.haystack_documents
    ADD CONSTRAINT haystack_documents_pkey PRIMARY KEY (id);

CREATE INDEX haystack_hnsw_index ON public.haystack_documents USING hnsw (embedding public.vector_cosine_ops);

CREATE INDEX haystack_keyword_index ON public.haystack_documents USING gin (to_tsvector('english'::regconfig, content));
