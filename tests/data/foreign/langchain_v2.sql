-- Made by langchain-postgres 0.0.19, PGVectorStore, on pgvector 0.8.5; scripts/foreign-tables makes it again.
CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE public.notes (
    langchain_id uuid NOT NULL,
    content text NOT NULL,
    embedding public.vector(8) NOT NULL,
    kind text,
    n integer,
    langchain_metadata json
);

INSERT INTO public.notes VALUES ('00000001-0000-4000-8000-000000000000', 'a heron waits', '[0.5,-0.375,-0.625,1,-0.75,-0.375,0.25,0.625]', 'bird', 0, '{"page": 1}');
INSERT INTO public.notes VALUES ('00000002-0000-4000-8000-000000000000', 'the tide turns', '[0.25,0.75,-1,-0.25,0.125,-0.125,-0.25,-0.25]', 'sea', 1, '{"page": 1}');
INSERT INTO public.notes VALUES ('00000003-0000-4000-8000-000000000000', 'rain on slate', '[-1,-0.875,0.125,0,1,-0.5,0.75,-0.5]', 'sky', 2, '{"page": 1}');
INSERT INTO public.notes VALUES ('00000004-0000-4000-8000-000000000000', 'seven bells', '[-0.75,-0.625,-0.25,-0.625,0.875,0.625,0.625,-0.125]', 'sea', 3, '{"page": 1}');
INSERT INTO public.notes VALUES ('00000005-0000-4000-8000-000000000000', 'salt and rope', '[-1,-0.5,-0.125,0.25,-0.125,0.25,-0.25,0.25]', 'sea', 4, '{"page": 1}');

ALTER TABLE ONLY public.notes
    ADD CONSTRAINT notes_pkey PRIMARY KEY (langchain_id);

CREATE INDEX notes_hnsw ON public.notes USING hnsw (embedding public.vector_cosine_ops) WITH (m='16', ef_construction='64');
