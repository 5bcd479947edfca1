-- Made by vecs 0.4.5, on pgvector 0.8.5; scripts/foreign-tables makes it again.
CREATE EXTENSION IF NOT EXISTS vector;

CREATE SCHEMA vecs;

CREATE TABLE vecs.docs (
    id character varying NOT NULL,
    vec public.vector(8) NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL
);

INSERT INTO vecs.docs VALUES ('00000001-0000-4000-8000-000000000000', '[0.5,-0.375,-0.625,1,-0.75,-0.375,0.25,0.625]', '{"n": 0, "kind": "bird"}');
INSERT INTO vecs.docs VALUES ('00000002-0000-4000-8000-000000000000', '[0.25,0.75,-1,-0.25,0.125,-0.125,-0.25,-0.25]', '{"n": 1, "kind": "sea"}');
INSERT INTO vecs.docs VALUES ('00000003-0000-4000-8000-000000000000', '[-1,-0.875,0.125,0,1,-0.5,0.75,-0.5]', '{"n": 2, "kind": "sky"}');
INSERT INTO vecs.docs VALUES ('00000004-0000-4000-8000-000000000000', '[-0.75,-0.625,-0.25,-0.625,0.875,0.625,0.625,-0.125]', '{"n": 3, "kind": "sea"}');
INSERT INTO vecs.docs VALUES ('00000005-0000-4000-8000-000000000000', '[-1,-0.5,-0.125,0.25,-0.125,0.25,-0.25,0.25]', '{"n": 4, "kind": "sea"}');

ALTER TABLE ONLY vecs.docs
    ADD CONSTRAINT docs_pkey PRIMARY KEY (id);

CREATE INDEX ix_vector_cosine_ops_hnsw_m16_efc64_c42d723 ON vecs.docs USING hnsw (vec public.vector_cosine_ops) WITH (m='16', ef_construction='64');
